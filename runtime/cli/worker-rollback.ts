import { FlurryError } from "../../errors/errors.ts";
import type { WorkerVersion } from "../client/mod.ts";
import { type GatewayOptions, gatewayClient } from "./gateway-client.ts";
import { Output } from "./output.ts";

/**
 * `flurry worker rollback`: makes the newest version before the current one current. Versions that are
 * known not to load are left out: nobody wants to go back to them.
 *
 * @throws FlurryError WORKER_NOT_FOUND when there is none
 */
export async function rollBack(name: string, options: GatewayOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const { workers } = gatewayClient(options);
  const current = await workers.get(name);
  const before = await versionBefore(workers.versions(name), current, ({ version }) =>
    output.note(`${name}@${version} is left out: it has failed`),
  );
  if (before === undefined) {
    throw new FlurryError(
      "WORKER_NOT_FOUND",
      `There is no version to use before ${name}@${current.version}`,
      {
        hint: `flurry worker get ${name} --versions lists them, flurry worker use ${name}@N takes any`,
      },
    );
  }
  const worker = await workers.setCurrent(name, before.version);
  output.emit({ event: "worker", ...worker });
  output.print(`${name}@${worker.version} is current`);
  output.note(`flurry worker use ${name}@${current.version} goes forward again`);
}

/** @param versions - newest first */
async function versionBefore(
  versions: AsyncIterable<WorkerVersion>,
  current: WorkerVersion,
  onFailed: (version: WorkerVersion) => void,
): Promise<WorkerVersion | undefined> {
  for await (const each of versions) {
    if (each.version >= current.version) continue;
    if (each.state !== "failed") return each;
    onFailed(each);
  }
  return undefined;
}
