import { connect, type Socket } from "node:net";

/** Most bytes that a child may exit with. */
const RESULT_MAX = 1024 * 1024;
const LINE_MAX = 65_536;
const FILES_MAX = 100_000;
const SOCKET = "/run/flurry/vm.sock";

/** Forms of words in answers: guest-agent/protocol/CALLS.md. */
const WORD = "[a-z0-9]{1,32}";
const NUMBER = "\\d{1,15}";
const NAME = "\\S+";
const CHILD = new RegExp(
  `^child (?<id>${NUMBER}) (?<vm>${NAME}) (?<state>exited|killed|died|failed) (?<status>${NUMBER}) (?<length>${NUMBER}) (?<files>${NUMBER})$`,
);

/** What was asked for was refused. `code` is of guest-agent/protocol/CALLS.md, NO_HOST outside of a VM, or ABORTED. */
export class FlurryError extends Error {
  override name = "FlurryError";
  readonly code: string;

  constructor(code: string, message: string, options: { cause?: unknown } = {}) {
    super(`${code}: ${message}`, options);
    this.code = code;
  }
}

/** Places for `granted` children. */
export interface Ticket {
  name: string;
  granted: number;
}

/** Which VM this is: `id` is 0 where `fork` was called, 1 to `granted` in the children. */
export interface Forked {
  id: number;
  ticket: Ticket;
  granted: number;
}

/** How a child ended. `result` is what it has exited with, or why it has not, for people. */
export interface Child {
  id: number;
  vm: string;
  state: "exited" | "killed" | "died" | "failed";
  status: number;
  result: Uint8Array;
  /** What it has left below /out, where it is in this VM. */
  files: { path: string; size: number }[];
}

/** Who this VM is. `parent` is null for one that was not forked by another. */
export interface Vm {
  id: number;
  vm: string;
  generation: number;
  parent: string | null;
}

export interface CallOptions {
  /** Gives the call up. What it has begun on the host goes on. */
  signal?: AbortSignal | undefined;
}

let forks = 0;
let isChild = false;

/** Whether a call of this program is under way that forks its VM. */
export function isForking(): boolean {
  return forks > 0;
}

/** Whether a call of this program has come out in a child. */
export function isForked(): boolean {
  return isChild;
}

/** Reserves places for up to `n` children; may grant fewer, and at least one. */
export async function requestTicket(
  n: number,
  options: CallOptions & { timeoutMs?: number } = {},
): Promise<Ticket> {
  const more = options.timeoutMs === undefined ? "" : ` ${Math.ceil(options.timeoutMs)}`;
  const [name, granted] = await ask(`ticket ${n}${more}`, [WORD, NUMBER, NUMBER], options);
  return { name, granted: within(granted, 1, n) };
}

/** Forks this VM: 0 here, 1 to `ticket.granted` in the children. */
export async function clone(ticket: Ticket | string, options: CallOptions = {}): Promise<number> {
  const [id, granted] = await forking(`clone ${nameOf(ticket)}`, [NUMBER, NUMBER], options);
  return cameOut(within(id, 0, Number(granted)));
}

/** `requestTicket` and `clone` in one. */
export async function fork(n: number, options: CallOptions = {}): Promise<Forked> {
  const [id, name, places] = await forking(`fork ${n}`, [NUMBER, WORD, NUMBER], options);
  const granted = within(places, 1, n);
  return { id: cameOut(within(id, 0, granted)), ticket: { name, granted }, granted };
}

/** Keeps this VM's state: id 0 here, more in each child that is made of it later. */
export async function checkpointParent(
  options: CallOptions = {},
): Promise<{ id: number; checkpoint: string }> {
  const [id, checkpoint] = await forking("checkpoint", [NUMBER, WORD], options);
  return { id: cameOut(Number(id)), checkpoint };
}

/** Has children wake at a checkpoint; how many. */
export async function createClones(
  checkpoint: string,
  ticket: Ticket | string,
  options: CallOptions = {},
): Promise<number> {
  const [count] = await ask(`create ${nameOf(checkpoint)} ${nameOf(ticket)}`, [NUMBER], options);
  return Number(count);
}

/** Ends this child. @param result - bytes, a text, or what JSON can hold; up to 1 MiB */
export async function exit(status = 0, result: unknown = new Uint8Array()): Promise<never> {
  const bytes = bytesOf(result);
  if (bytes.length > RESULT_MAX)
    throw new FlurryError("BAD_CALL", `A result has at most ${RESULT_MAX} bytes`);
  using call = await Call.open({});
  throw badAnswer(await call.request(`exit ${status} ${bytes.length}`, bytes));
}

/** The next child that has ended, each of them once; undefined when all have been told of. */
export async function nextChild(
  ticket: Ticket | string,
  options: CallOptions & { timeoutMs?: number } = {},
): Promise<Child | undefined> {
  const more = options.timeoutMs === undefined ? "" : ` ${Math.ceil(options.timeoutMs)}`;
  using call = await Call.open(options);
  const line = await call.request(`next ${nameOf(ticket)}${more}`);
  if (line === "end") return undefined;
  const words = CHILD.exec(line)?.groups as Record<string, string> | undefined;
  if (!words) throw badAnswer(line);
  const [status, length, files] = [words.status, words.length, words.files].map(Number) as [
    number,
    number,
    number,
  ];
  if (status > 255 || length > RESULT_MAX || files > FILES_MAX) throw badAnswer(line);
  const result = await call.bytes(length);
  const child: Child = {
    id: Number(words.id),
    vm: words.vm!,
    state: words.state as Child["state"],
    ...{ status, result, files: [] },
  };
  while (child.files.length < files) {
    const told = await call.line();
    const [, size, path] = /^file (\d{1,19}) (\/.*)$/s.exec(told) ?? [];
    if (path === undefined) throw badAnswer(told);
    child.files.push({ path, size: Number(size) });
  }
  return child;
}

/** Children as they end. */
export async function* ended(
  ticket: Ticket | string,
  options: CallOptions = {},
): AsyncGenerator<Child, void> {
  for (;;) {
    const child = await nextChild(ticket, options);
    if (!child) return;
    yield child;
  }
}

/** All children that have not been told of, by id, when the last one has ended. */
export async function join(ticket: Ticket | string, options: CallOptions = {}): Promise<Child[]> {
  const children: Child[] = [];
  for await (const child of ended(ticket, options)) children.push(child);
  return children.sort((a, b) => a.id - b.id);
}

/** Ends all children that run; how many those were. `join` tells of them too. */
export async function kill(ticket: Ticket | string, options: CallOptions = {}): Promise<number> {
  const [count] = await ask(`kill ${nameOf(ticket)}`, [NUMBER], options);
  return Number(count);
}

export async function identity(options: CallOptions = {}): Promise<Vm> {
  const [id, vm, generation, parent] = await ask("id", [NUMBER, NAME, NUMBER, NAME], options);
  return { id: Number(id), vm, generation: Number(generation), parent: parent === "-" ? null : parent };
}

/** One conversation with the host. Each call has its own, so that many may wait at the same time. */
class Call implements Disposable {
  readonly #socket: Socket;
  readonly #options: CallOptions;
  readonly #onAbort = () => this.#fail(new FlurryError("ABORTED", "The call was given up"));
  #unread: Buffer = Buffer.alloc(0);
  #failure: FlurryError | undefined;
  #wake: (() => void) | undefined;
  #isOpen = false;

  private constructor(socket: Socket, options: CallOptions) {
    this.#socket = socket;
    this.#options = options;
    socket.on("data", (chunk: Buffer) => {
      this.#unread = Buffer.concat([this.#unread, chunk]);
      this.#wake?.();
    });
    socket.on("connect", () => {
      this.#isOpen = true;
      this.#wake?.();
    });
    socket.on("error", (cause) => {
      const what = this.#isOpen ? "The host is gone" : "This is no Flurry VM";
      this.#fail(new FlurryError("NO_HOST", `${what}: ${cause.message}`, { cause }));
    });
    socket.on("close", () => this.#fail(new FlurryError("NO_HOST", "The host has ended the call")));
    options.signal?.addEventListener("abort", this.#onAbort, { once: true });
    if (options.signal?.aborted) this.#onAbort();
  }

  static async open(options: CallOptions): Promise<Call> {
    // It listens from the start: the host may refuse before anything was asked.
    const call = new Call(connect(process.env.FLURRY_VM_SOCKET || SOCKET), options);
    try {
      while (!call.#isOpen) await call.#news();
      return call;
    } catch (error) {
      call[Symbol.dispose]();
      throw error;
    }
  }

  /** The line that answers; an error is thrown. */
  async request(line: string, body?: Uint8Array): Promise<string> {
    if (this.#failure?.code === "ABORTED") throw this.#failure;
    this.#socket.write(`${line}\n`);
    if (body?.length) this.#socket.write(body);
    const answer = await this.line();
    const [, code, text] = /^error (\S+) ?(.*)$/.exec(answer) ?? [];
    if (code !== undefined) throw new FlurryError(code, text ?? "");
    return answer;
  }

  async line(): Promise<string> {
    for (;;) {
      const end = this.#unread.indexOf(10);
      if (end >= 0) return this.#take(end + 1).toString("utf8", 0, end);
      if (this.#unread.length > LINE_MAX) throw badAnswer("a line that is too long");
      await this.#more();
    }
  }

  async bytes(count: number): Promise<Uint8Array> {
    while (this.#unread.length < count) await this.#more();
    return new Uint8Array(this.#take(count));
  }

  [Symbol.dispose](): void {
    this.#options.signal?.removeEventListener("abort", this.#onAbort);
    this.#socket.destroy();
  }

  #take(count: number): Buffer {
    const taken = this.#unread.subarray(0, count);
    this.#unread = this.#unread.subarray(count);
    return taken;
  }

  async #more(): Promise<void> {
    const had = this.#unread.length;
    while (this.#unread.length === had) await this.#news();
  }

  async #news(): Promise<void> {
    if (this.#failure) throw this.#failure;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
    });
  }

  #fail(failure: FlurryError): void {
    this.#failure ??= failure;
    this.#wake?.();
  }
}

/** What stands behind `ok` in the answer: a word of each of these forms. */
async function ask<Forms extends readonly string[]>(
  line: string,
  forms: readonly [...Forms],
  options: CallOptions,
): Promise<{ -readonly [Key in keyof Forms]: string }> {
  using call = await Call.open(options);
  const answer = await call.request(line);
  const [, ...words] = new RegExp(`^ok ${forms.map((form) => `(${form})`).join(" ")}$`).exec(answer) ?? [];
  if (words.length === 0) throw badAnswer(answer);
  return words as unknown as { -readonly [Key in keyof Forms]: string };
}

async function forking<Forms extends readonly string[]>(
  line: string,
  forms: readonly [...Forms],
  options: CallOptions,
) {
  forks += 1;
  try {
    return await ask(line, forms, options);
  } finally {
    forks -= 1;
  }
}

function cameOut(id: number): number {
  isChild ||= id > 0;
  return id;
}

function nameOf(ticket: Ticket | string): string {
  const name = typeof ticket === "string" ? ticket : ticket.name;
  if (new RegExp(`^${WORD}$`).test(name)) return name;
  throw new FlurryError("BAD_CALL", `${JSON.stringify(name)} is no name of a ticket or checkpoint`);
}

function within(word: string, least: number, most: number): number {
  const value = Number(word);
  if (value >= least && value <= most) return value;
  throw badAnswer(`${word}, which is not from ${least} to ${most}`);
}

function bytesOf(result: unknown): Uint8Array {
  if (ArrayBuffer.isView(result)) return new Uint8Array(result.buffer, result.byteOffset, result.byteLength);
  return Buffer.from(typeof result === "string" ? result : JSON.stringify(result));
}

function badAnswer(line: string): FlurryError {
  return new FlurryError("BAD_ANSWER", `The host answered "${line.slice(0, 200)}"`);
}
