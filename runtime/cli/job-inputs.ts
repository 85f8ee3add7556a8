import { createReadStream } from "node:fs";
import { createInterface } from "node:readline";
import { FlurryError } from "../../errors/errors.ts";

export interface InputSource {
  /** Path of a file; "-" is the standard input. */
  file: string;
  /** Whether each line is an input as it stands, in place of a JSON value. */
  lines: boolean;
}

/**
 * Inputs of tasks, one a line, read as they are asked for.
 *
 * @throws FlurryError BAD_ARGUMENT for a file that cannot be read, a line that is no JSON, no inputs at all
 */
export async function* readInputs({ file, lines }: InputSource): AsyncGenerator<unknown, void, undefined> {
  const shown = file === "-" ? "the standard input" : `"${file}"`;
  const stream = file === "-" ? process.stdin : createReadStream(file);
  let failure: unknown;
  // readline ends quietly when its stream fails.
  stream.once("error", (error) => {
    failure = error;
    reader.close();
  });
  const reader = createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY });
  let number = 0;
  let inputs = 0;
  try {
    for await (const line of reader) {
      number += 1;
      if (!lines && line.trim() === "") continue;
      inputs += 1;
      yield lines ? line : parsed(line, number, shown);
    }
  } finally {
    reader.close();
    stream.destroy();
  }
  if (failure !== undefined) {
    const reason = failure instanceof Error ? failure.message : String(failure);
    throw new FlurryError("BAD_ARGUMENT", `Cannot read ${shown}: ${reason}`, { cause: failure });
  }
  if (inputs === 0) throw new FlurryError("BAD_ARGUMENT", `There are no inputs in ${shown}`);
}

function parsed(line: string, number: number, shown: string): unknown {
  try {
    return JSON.parse(line);
  } catch (cause) {
    throw new FlurryError("BAD_ARGUMENT", `Line ${number} of ${shown} is no JSON`, {
      cause,
      hint: "with --lines each line is a string as it stands",
    });
  }
}
