import { isUtf8 } from "node:buffer";
import { createHash } from "node:crypto";
import { FlurryError } from "../../errors/errors.ts";
import { arriving } from "./arriving.ts";
import { parseJson, tooLarge } from "./body.ts";

/** Most bytes of a line after the first, which may have files in it. An input's own limit is less. */
const MAX_LINE_BYTES = 512 * 1024;
const LINE_FEED = 10;

export interface NdjsonLimits {
  /** Most bytes of the first line. */
  headBytes: number;
  /** Most bytes in all. */
  bodyBytes: number;
  /** Longest silence of the sender while lines are asked for, in ms. */
  silenceMs: number;
}

/**
 * A body of JSON values, one a line, which are read as they are asked for: the sender waits meanwhile.
 * Empty lines are skipped. Disposing gives up what has not been read.
 */
export class NdjsonBody implements AsyncDisposable {
  readonly #lines: AsyncGenerator<unknown>;
  readonly #hash = createHash("sha256");

  constructor(body: ReadableStream<Uint8Array>, limits: NdjsonLimits) {
    this.#lines = this.#read(body, limits);
  }

  /** @throws FlurryError BAD_ARGUMENT when there is no line */
  async first(): Promise<unknown> {
    const { done, value } = await this.#lines.next();
    if (done) throw new FlurryError("BAD_ARGUMENT", "The body is empty: its first line describes the job");
    return value;
  }

  /**
   * The values of the lines that are left.
   *
   * @throws FlurryError BAD_ARGUMENT with the number of the line, BODY_TOO_LARGE, BODY_TIMEOUT, ABORTED
   */
  rest(): AsyncIterable<unknown> {
    return this.#lines;
  }

  /** SHA-256 of the body in hex, when it has been read to its end. */
  digest(): string {
    return this.#hash.digest("hex");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#lines.return(undefined);
  }

  async *#read(body: ReadableStream<Uint8Array>, limits: NdjsonLimits): AsyncGenerator<unknown> {
    let left: Uint8Array[] = [];
    let leftBytes = 0;
    let bytes = 0;
    let line = 0;
    for await (const chunk of arriving(body, { silenceMs: limits.silenceMs })) {
      bytes += chunk.byteLength;
      if (bytes > limits.bodyBytes) throw tooLarge(limits.bodyBytes);
      this.#hash.update(chunk);
      const end = chunk.lastIndexOf(LINE_FEED) + 1;
      if (end > 0) {
        for (const text of splitLines(Buffer.concat([...left, chunk.subarray(0, end)]), line)) {
          line += 1;
          if (text.trim() !== "") yield parsed(text, line, limits);
        }
        left = [];
        leftBytes = 0;
      }
      if (end < chunk.byteLength) {
        left.push(chunk.slice(end));
        leftBytes += chunk.byteLength - end;
        checkLength(leftBytes, line + 1, limits);
      }
    }
    const [text = ""] = splitLines(Buffer.concat(left), line);
    if (text.trim() !== "") yield parsed(text, line + 1, limits);
  }
}

function parsed(text: string, line: number, limits: NdjsonLimits): unknown {
  checkLength(text.length, line, limits);
  return parseJson(text, `Line ${line}`);
}

function checkLength(bytes: number, line: number, limits: NdjsonLimits): void {
  const limit = line === 1 ? limits.headBytes : MAX_LINE_BYTES;
  if (bytes > limit) throw new FlurryError("BODY_TOO_LARGE", `Line ${line} has more than ${limit} bytes`);
}

/** Lines of a block without their ends. */
function splitLines(block: Buffer, before: number): string[] {
  const lines = block.toString("utf8").split("\n");
  if (lines.at(-1) === "") lines.pop();
  if (isUtf8(block)) return lines;
  let start = 0;
  let line = before + 1;
  for (let end = block.indexOf(LINE_FEED); end !== -1; end = block.indexOf(LINE_FEED, start)) {
    if (!isUtf8(block.subarray(start, end))) break;
    start = end + 1;
    line += 1;
  }
  throw new FlurryError("BAD_ARGUMENT", `Line ${line} is not UTF-8`);
}
