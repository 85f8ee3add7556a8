import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  WorkerClient,
  type WorkerClientOptions,
  type WorkerFault,
  type WorkerLog,
  type WorkerResponse,
} from "../../guest-agent/protocol/worker/mod.ts";
import { bundleWorker, bundleWorkerHost } from "../../guest-agent/worker-host/bundle.ts";
import { ScriptedHook } from "./agent-hook.ts";

/** The real worker host, bundled as for an image, as an ordinary process on this machine. */
export class WorkerHostUnderTest implements AsyncDisposable {
  /** Goes with the process. */
  readonly directory: string;
  readonly process: ChildProcess;
  readonly logs: WorkerLog[] = [];
  readonly faults: WorkerFault[] = [];
  readonly #exited: Promise<unknown>;
  readonly #sockets: Socket[] = [];
  #stderr = "";
  #hook: ScriptedHook | undefined;

  private constructor(child: ChildProcess, directory: string) {
    this.process = child;
    this.directory = directory;
    this.#exited = once(child, "exit");
    child.stderr?.on("data", (chunk) => {
      this.#stderr += chunk;
    });
  }

  /** @param hasHook - whether it gets a fork hook; its other end is `hook` */
  static async start(env: Record<string, string> = {}, hasHook = false): Promise<WorkerHostUnderTest> {
    const { path } = await bundleWorkerHost();
    const directory = mkdtempSync(join(tmpdir(), "flurry-worker-"));
    const argv = ["--no-env-file", path, `unix:${join(directory, "socket")}`];
    const child = spawn(process.execPath, argv, {
      stdio: ["ignore", "pipe", "pipe", ...(hasHook ? ["pipe" as const] : [])],
      cwd: directory,
      env: { PATH: process.env.PATH ?? "", ...(hasHook && { FLURRY_FORK_FD: "3" }), ...env },
    });
    const host = new WorkerHostUnderTest(child, directory);
    if (hasHook) {
      // It registers before it says that it listens, and waits for the answer.
      host.#hook = ScriptedHook.over(child.stdio[3] as Socket);
      const registered = await host.hook.next();
      if (registered !== `hook worker-host ${child.pid}`) throw new Error(`It registers as: ${registered}`);
      host.hook.say("ok");
    }
    const [line] = await Promise.race([once(child.stdout!, "data"), host.#exited.then(() => [""])]);
    if (String(line).trim() !== "listening")
      throw new Error(`The worker host did not start: ${host.#stderr}`);
    return host;
  }

  /** Starts a worker host, connects, bundles `source` and loads it. */
  static async running(
    source: string,
    options: WorkerClientOptions = {},
  ): Promise<{ host: WorkerHostUnderTest; client: WorkerClient } & AsyncDisposable> {
    const host = await WorkerHostUnderTest.start();
    try {
      const client = await host.client(options);
      await client.load({ entry: await host.bundle(source), name: "test" });
      return {
        host,
        client,
        [Symbol.asyncDispose]: async () => {
          await client[Symbol.asyncDispose]();
          await host[Symbol.asyncDispose]();
        },
      };
    } catch (error) {
      await host[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** The agent's end of its fork hook. */
  get hook(): ScriptedHook {
    if (!this.#hook) throw new Error("The worker host was started without a fork hook");
    return this.#hook;
  }

  get pid(): number {
    return this.process.pid!;
  }

  get alive(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  get exited(): Promise<unknown> {
    return this.#exited;
  }

  /** What was written past the worker host: Bun's own words. */
  get stderr(): string {
    return this.#stderr;
  }

  /** Resident memory in KiB. */
  get residentKiB(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
    return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]);
  }

  /** Processor time in clock ticks. */
  get ticks(): number {
    const fields = readFileSync(`/proc/${this.pid}/stat`, "utf8").split(") ")[1]!.split(" ");
    return Number(fields[11]) + Number(fields[12]);
  }

  /** Bundles a worker; its path. */
  async bundle(source: string, name = "worker.ts"): Promise<string> {
    // Beside the project's modules, so that a worker finds hono.
    const sources = mkdtempSync(join(import.meta.dirname, "../../node_modules/.flurry-worker-"));
    try {
      writeFileSync(join(sources, name), source);
      const { code } = await bundleWorker(join(sources, name));
      const path = join(this.directory, `${name}.js`);
      writeFileSync(path, code);
      return path;
    } finally {
      rmSync(sources, { recursive: true, force: true });
    }
  }

  /** A bare connection, for what no client would send. */
  async socket(): Promise<Socket> {
    const socket = connect(join(this.directory, "socket"));
    this.#sockets.push(socket);
    socket.on("error", () => undefined); // a reset is what some tests are after
    await once(socket, "connect");
    return socket;
  }

  /** A new host end. */
  async client(options: WorkerClientOptions = {}): Promise<WorkerClient> {
    return WorkerClient.over(await this.socket(), {
      name: "the test",
      stderr: () => this.#stderr,
      onLog: (log) => this.logs.push(log),
      onFault: (fault) => this.faults.push(fault),
      ...options,
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (this.alive) this.process.kill("SIGKILL");
    await this.#exited;
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** The text of a response's body. */
export async function textOf(response: WorkerResponse): Promise<string> {
  return await new Response(response.body).text();
}

/** Waits until `check` holds, at most `ms`. */
export async function eventually(check: () => boolean, ms = 5000): Promise<void> {
  const end = performance.now() + ms;
  while (!check()) {
    if (performance.now() > end) throw new Error(`Still not so after ${ms} ms: ${check}`);
    await sleep(2);
  }
}
