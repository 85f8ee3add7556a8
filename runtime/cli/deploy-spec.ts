import { basename } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import type { WorkerBundle } from "../../guest-agent/worker-host/bundle.ts";
import { MAX_MODULE_CHARACTERS, type WorkerSpecInput } from "../api/mod.ts";
import type { ConfiguredWorker } from "./worker-config.ts";

type Isolation = NonNullable<NonNullable<WorkerSpecInput["http"]>["isolation"]>;
export type IsolationMode = Isolation["mode"];

/** What the command line says of a worker. */
export interface DeploySpecOptions {
  name?: string;
  isolation?: IsolationMode;
  env?: Record<string, string>;
  secret?: Record<string, string>;
  memory?: number;
  cpus?: number;
  allow?: string[];
  cron?: string[];
  host?: string[];
  warm?: string[];
}

/** @throws FlurryError BAD_ARGUMENT */
export function workerName(options: DeploySpecOptions, { config }: ConfiguredWorker): string {
  const name = options.name ?? config.name;
  if (name !== undefined) return name;
  throw new FlurryError("BAD_ARGUMENT", "The worker has no name", {
    hint: "give it one by --name NAME, or by name in flurry.jsonc",
  });
}

/**
 * What the gateway is to deploy. The command line wins over the file: variables one by one, lists as a
 * whole.
 *
 * @throws FlurryError BAD_ARGUMENT for a module that no gateway takes
 */
export function deploySpec(
  options: DeploySpecOptions,
  { main, config }: ConfiguredWorker,
  bundle: WorkerBundle,
): WorkerSpecInput {
  if (bundle.code.length > MAX_MODULE_CHARACTERS) {
    const size = `${bundle.code.length} characters, of which ${MAX_MODULE_CHARACTERS} are possible`;
    throw new FlurryError("BAD_ARGUMENT", `The bundle of ${main} has ${size}`);
  }
  const { $schema: _, name: __, main: ___, module, ...spec } = config;
  const { isolation, env, secret, memory, cpus, allow, cron, host, warm } = options;
  const http = {
    ...spec.http,
    ...(isolation && { isolation: isolationOf(isolation, spec.http?.isolation) }),
    ...(host && { hosts: host }),
  };
  return {
    ...spec,
    env: { ...spec.env, ...env },
    secrets: { ...spec.secrets, ...secret },
    ...(Object.keys(http).length > 0 && { http }),
    ...(memory !== undefined && { memoryMiB: memory }),
    ...(cpus !== undefined && { cpus }),
    ...(allow && { allow }),
    ...(cron && { crons: cron }),
    module: {
      entry: basename(main),
      ...module,
      ...(warm && { warmUp: warm.map((path) => ({ path })) }),
      code: bundle.code,
    },
  };
}

/** That of the file with all its limits if it is of this mode. */
export function isolationOf(mode: IsolationMode, configured: Isolation | undefined): Isolation {
  return configured?.mode === mode ? configured : { mode };
}
