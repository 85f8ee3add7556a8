import { fileURLToPath } from "node:url";
import { FlurryClient } from "../../runtime/client/mod.ts";
import type { CliSandbox } from "./cli.ts";
import { Script } from "./vm.ts";

/** Characters of a gateway's log that are shown when it fails a test. */
const LOG_CHARACTERS = 4000;

const program = fileURLToPath(new URL("gateway-process.ts", import.meta.url));

/** A gateway in a process of its own. */
export interface GatewayProcess {
  pid: number;
  /** Its URL, when it answers; rejected when it ends before. */
  ready: Promise<string>;
  /** The end of what it has written to stderr so far. */
  log(): string;
  /** Sends a signal and waits for the end. */
  end(signal: "SIGKILL" | "SIGTERM"): Promise<{ code: number | null; stderr: string }>;
}

/** `./flurry serve`, for two VMs at a time. */
export function cliGateway(sandbox: CliSandbox, dir: string): GatewayProcess {
  const run = sandbox.start([
    ...["serve", "--listen", "127.0.0.1:0", "--data", dir, "--children", "2", "--json"],
    ...["--webhook-allow", "127.0.0.1", "--log-level", "warning"],
  ]);
  return {
    pid: run.pid,
    ready: run.until(/"event":"ready","url":"([^"]+)"/).then(([, url]) => url!),
    log: () => run.stderr.slice(-LOG_CHARACTERS),
    end: async (signal) => {
      run.kill(signal);
      const { status, stderr } = await run.ended;
      return { code: status, stderr };
    },
  };
}

/** One whose tasks need no VMs. */
export function scriptedGateway(dir: string): GatewayProcess {
  const script = new Script(program, ["--data", dir, "--slots", "16", "--webhook-allow", "127.0.0.1"]);
  return {
    pid: script.pid,
    ready: script.line().then((line) => JSON.parse(line).url),
    log: () => script.stderr.slice(-LOG_CHARACTERS),
    end: async (signal) => {
      await script.kill(signal);
      return await script.exited;
    },
  };
}

/** Gateways that follow each other on one data directory, with a client that finds the one that lives. */
export class GatewayLives implements AsyncDisposable {
  readonly client: FlurryClient;
  readonly #spawn: () => GatewayProcess;
  readonly #over = new AbortController();
  #process: GatewayProcess | undefined;
  #answering = Promise.withResolvers<string>();
  #answers = false;

  constructor(spawn: () => GatewayProcess) {
    this.#spawn = spawn;
    this.client = new FlurryClient({
      url: "http://gateway",
      fetch: (url, init) => this.#fetch(url, init),
      retries: 20,
      signal: this.#over.signal,
    });
  }

  get pid(): number {
    return this.#process!.pid;
  }

  /** The end of what the last one has logged. */
  log(): string {
    return this.#process?.log() ?? "";
  }

  /** Starts the next one, which need not answer when this returns. */
  spawn(): GatewayProcess {
    this.#over.signal.throwIfAborted();
    this.#process = this.#spawn();
    // It may be killed before anybody waits for it.
    this.#process.ready.catch(() => undefined);
    return this.#process;
  }

  /** Starts two at once. Returns what the one that ended wrote to stderr. */
  async startTwo(): Promise<string> {
    const two = [this.spawn(), this.spawn()] as const;
    const url = await Promise.any(two.map(({ ready }) => ready));
    const [first] = await Promise.allSettled(two.map(({ ready }) => ready));
    const [winner, loser] = first?.status === "fulfilled" ? two : two.toReversed();
    this.#process = winner;
    this.#answer(url);
    // It has ended: no signal reaches it.
    return (await loser!.end("SIGKILL")).stderr;
  }

  /** Starts the next one and waits until it answers. */
  async start(): Promise<void> {
    this.#answer(await this.spawn().ready);
  }

  async kill(): Promise<void> {
    await this.#end("SIGKILL");
  }

  /** Ends the last one as people do. Returns its exit status. */
  async stop(): Promise<number | null> {
    const ended = await this.#end("SIGTERM");
    return ended?.code ?? null;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#over.abort();
    await this.kill();
    this.#answering.promise.catch(() => undefined);
    this.#answering.reject(new Error("No further gateway comes"));
  }

  #answer(url: string): void {
    this.#answers = true;
    this.#answering.resolve(url);
  }

  async #end(signal: "SIGKILL" | "SIGTERM") {
    const process = this.#process;
    this.#process = undefined;
    // Whoever asks from now on waits for the next one; who asked before has lost this one.
    if (this.#answers) this.#answering = Promise.withResolvers();
    this.#answers = false;
    return process?.end(signal);
  }

  async #fetch(url: string, init: RequestInit): Promise<Response> {
    const { pathname, search } = new URL(url);
    const base = await this.#answering.promise;
    // Connections that wait for a next request would be counted as the gateway's.
    return fetch(`${base}${pathname}${search}`, { ...init, keepalive: false });
  }
}
