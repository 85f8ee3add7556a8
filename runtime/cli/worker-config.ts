import { dirname, join, relative } from "node:path";
import { z } from "zod";
import { FlurryError } from "../../errors/errors.ts";
import { Name, WorkerModule, WorkerSpec } from "../api/mod.ts";
import { readJsonc } from "./jsonc-file.ts";

const CONFIG_FILE = "flurry.jsonc";

/** The option that names another file. */
export const CONFIG_OPTION = [
  "--config <file>",
  `describes the worker (default: ${CONFIG_FILE} beside the module or here)`,
] as const;

/** `flurry.jsonc`: a worker's description, all but its code, which is bundled from `main`. */
export const WorkerConfig = z
  // Anew from its fields: what the whole has to be is checked when the module is there.
  .strictObject(WorkerSpec.shape)
  .omit({ image: true, command: true, cwd: true, warmUp: true, module: true })
  .extend({
    $schema: z.string().optional().meta({ description: "This schema, for editors" }),
    name: Name.optional().meta({ description: "Name of the worker: it answers at /w/NAME/" }),
    main: z
      .string()
      .min(1)
      .optional()
      .meta({ description: "Path of the module, from this file", examples: ["src/worker.ts"] }),
    module: z.strictObject(WorkerModule.shape).omit({ code: true }).optional(),
  })
  .meta({ title: "A JS worker of Flurry" });
type WorkerConfig = z.input<typeof WorkerConfig>;

/** The JSON Schema of the file: `docs/flurry.schema.json`. */
export function configJsonSchema(): object {
  // Draft 7 is what editors know best.
  return z.toJSONSchema(WorkerConfig, { io: "input", target: "draft-7" });
}

/** A worker's module and what a file says of it. */
export interface ConfiguredWorker {
  /** Path of the module. */
  main: string;
  config: WorkerConfig;
  /** The file; undefined when there is none. */
  file: string | undefined;
}

/**
 * Finds the module and its config: the file that is named, else `flurry.jsonc` beside the module or in
 * the working directory.
 *
 * @param main - path of the module; that of the config by default
 * @throws FlurryError BAD_ARGUMENT
 */
export async function configuredWorker(
  main: string | undefined,
  named: string | undefined,
): Promise<ConfiguredWorker> {
  const beside = main === undefined ? [] : [join(dirname(main), CONFIG_FILE)];
  const places = named === undefined ? [...new Set([...beside, CONFIG_FILE])] : [named];
  for (const file of places) {
    const config = await readJsonc(file, WorkerConfig);
    if (config === undefined) continue;
    if (main !== undefined) return { main, config, file };
    if (config.main !== undefined) return { main: fromHere(join(dirname(file), config.main)), config, file };
    throw new FlurryError("BAD_ARGUMENT", `${file} names no module`, {
      hint: 'add "main": "worker.ts", or give the path of the module',
    });
  }
  if (named !== undefined) throw new FlurryError("BAD_ARGUMENT", `There is no ${named}`);
  if (main !== undefined) return { main, config: {}, file: undefined };
  throw new FlurryError("BAD_ARGUMENT", `No module is named, and there is no ${CONFIG_FILE} here`, {
    hint: "give the path of the module, such as worker.ts",
  });
}

/** Short, for messages. */
function fromHere(path: string): string {
  return relative("", path);
}
