import { read, readSync, writeSync } from "node:fs";

const LINE_BYTES = 512;

export interface ForkHookOptions {
  /** Connection to the guest's agent: a unix socket that blocks. */
  fd: number;
  name: string;
  /** Why there can be no fork now; else all is made ready for one. */
  prepare: () => string | undefined;
  /** Renews what a fork must not have copied; its evidence. */
  renew: (seed: Uint8Array) => string;
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
export function joinForks(options: ForkHookOptions): void {
  const { fd, name, onFailed } = options;
  writeSync(fd, `hook ${name} ${process.pid}\n`);
  const reader = new LineReader(fd);
  const answer = reader.line();
  if (answer !== "ok") throw new Error(`The agent refuses this fork hook: ${answer}`);
  const next = () =>
    reader.nextLine((error, line) => {
      try {
        if (error) throw error;
        if (line !== "prepare") throw new Error(`The agent said "${line}" where nothing was to be said`);
        takePart(reader, options);
        next();
      } catch (failure) {
        onFailed(failure);
      }
    });
  next();
}

function takePart(reader: LineReader, { fd, prepare, renew }: ForkHookOptions): void {
  const busy = prepare();
  if (busy !== undefined) {
    writeSync(fd, `busy ${busy.slice(0, 200)}\n`);
    return;
  }
  writeSync(fd, "ready\n");
  const said = reader.line();
  if (said === "resume") return;
  const seed = /^forked \S+ \d+ ([0-9a-f]{64})$/.exec(said)?.[1];
  if (seed === undefined) throw new Error(`The agent said "${said.slice(0, 20)}" in place of "forked"`);
  writeSync(fd, `${outcome(() => renew(Uint8Array.fromHex(seed)))}\n`);
  reader.line(); // `go`: whoever has not proven it is killed before
}

function outcome(renewed: () => string): string {
  try {
    return `done ${renewed()}`;
  } catch (error) {
    return `failed ${String(error).replaceAll("\n", " ").slice(0, 200)}`;
  }
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

  #take(): string | undefined {
    const end = this.#buffer.subarray(0, this.#length).indexOf(10);
    if (end < 0) return undefined;
    const line = this.#buffer.toString("latin1", 0, end);
    this.#buffer.copy(this.#buffer, 0, end + 1, this.#length);
    this.#length -= end + 1;
    return line;
  }
}
