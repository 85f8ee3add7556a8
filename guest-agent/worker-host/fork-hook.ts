import { closeSync, openSync, read, readSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const LINE_BYTES = 512;
const NEWLINE = 10;

export interface ForkHook {
  /** Why there can be no fork now; else all is made ready for one. */
  prepare: () => string | undefined;
  /** Renews what a fork must not have copied; its evidence. */
  renew: () => string;
}

export interface ForkHookOptions extends ForkHook {
  /** Connection to the guest's agent: a unix socket that blocks. */
  fd: number;
  name: string;
  /** The agent is gone, or makes no sense. */
  onFailed: (error: unknown) => void;
}

/**
 * This program's part in a fork of its VM: guest-agent/protocol/PROTOCOL.md, "Hooks". From `prepare` until
 * `go` all happens in one turn, which waits where it must: so no timer, promise or callback of the
 * worker runs between the freeze and the proof that the child is someone else.
 *
 * @throws Error when the agent refuses it
 */
export function joinForks({ fd, name, prepare, renew, onFailed }: ForkHookOptions): void {
  writeSync(fd, `hook ${name} ${process.pid}\n`);
  const reader = new LineReader(fd);
  const answer = reader.line();
  if (answer !== "ok") throw new Error(`The agent refuses this fork hook: ${answer}`);
  const next = () =>
    reader.nextLine((error, line) => {
      try {
        if (error) throw error;
        if (line !== "prepare") throw new Error(`The agent said "${line}" where nothing was to be said`);
        takePart(reader, fd, { prepare, renew });
        next();
      } catch (failure) {
        onFailed(failure);
      }
    });
  next();
}

/** Goes through forks that are none, so that no child pays for what runs for the first time. */
export function rehearseForks(hook: ForkHook, rounds: number): void {
  const script = join(tmpdir(), `flurry-rehearsal-${process.pid}`);
  writeFileSync(script, `forked vm-000000000000 0 ${"0".repeat(64)}\ngo\n`.repeat(rounds));
  const said = openSync(script, "r");
  const answered = openSync("/dev/null", "w");
  try {
    const reader = new LineReader(said);
    for (let round = 0; round < rounds; round++) takePart(reader, answered, hook);
  } finally {
    closeSync(said);
    closeSync(answered);
    rmSync(script);
  }
}

function takePart(reader: LineReader, fd: number, { prepare, renew }: ForkHook): void {
  const busy = prepare();
  if (busy !== undefined) {
    writeSync(fd, `busy ${oneLine(busy)}\n`);
    return;
  }
  writeSync(fd, "ready\n");
  const said = reader.line();
  if (said === "resume") return;
  // With 32 random bytes of the kernel's: the generators ask it themselves.
  if (!said.startsWith("forked ")) {
    throw new Error(`The agent said "${said.slice(0, 20)}" in place of "forked"`);
  }
  writeSync(fd, outcome(renew));
  reader.line(); // `go`: whoever has not proven it is killed before
}

function outcome(renew: ForkHook["renew"]): string {
  try {
    return `done ${renew()}\n`;
  } catch (error) {
    return `failed ${oneLine(String(error))}\n`;
  }
}

function oneLine(text: string): string {
  return text.replaceAll("\n", " ").slice(0, 200);
}

class LineReader {
  readonly #fd: number;
  readonly #buffer = Buffer.alloc(LINE_BYTES);
  #length = 0;

  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Waits for a line, with all of this program. */
  line(): string {
    for (;;) {
      const line = this.#take();
      if (line !== undefined) return line;
      this.#add(readSync(this.#fd, this.#buffer, this.#length, LINE_BYTES - this.#length, null));
    }
  }

  /** Waits for a line on another thread. */
  nextLine(done: (error: unknown, line?: string) => void): void {
    read(this.#fd, this.#buffer, this.#length, LINE_BYTES - this.#length, null, (error, count) => {
      if (error) return done(error);
      try {
        this.#add(count);
      } catch (failure) {
        return done(failure);
      }
      const line = this.#take();
      if (line === undefined) this.nextLine(done);
      else done(undefined, line);
    });
  }

  #add(count: number): void {
    if (count === 0) throw new Error("The agent has closed this program's fork hook");
    this.#length += count;
  }

  /** Each native function costs a child its first use: this is done with few. */
  #take(): string | undefined {
    for (let end = 0; end < this.#length; end++) {
      if (this.#buffer[end] !== NEWLINE) continue;
      const line = this.#buffer.toString("latin1", 0, end);
      if (end + 1 < this.#length) this.#buffer.copyWithin(0, end + 1, this.#length);
      this.#length -= end + 1;
      return line;
    }
    return undefined;
  }
}
