import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BuildAgentOptions, buildAgent } from "../../guest-agent/init/build.ts";
import { AgentClient, type AgentClientOptions } from "../../guest-agent/protocol/mod.ts";

export interface AgentProcessOptions {
  /** @default "sanitize": whatever the test does, the sanitizers watch the agent */
  variant?: BuildAgentOptions["variant"];
  args?: readonly string[];
  /** A program that runs the agent, such as `unshare -u`. */
  wrapper?: readonly string[];
  /** Takes identities: sets a host name of its own, and writes files below `root` alone. */
  identity?: boolean;
}

/** Runs a program with a host name of its own. */
export const OWN_HOSTNAME: readonly string[] =
  process.getuid?.() === 0 ? ["unshare", "--uts"] : ["unshare", "--user", "--map-root-user", "--uts"];

/** The real guest agent, as an ordinary process on this machine. */
export class AgentUnderTest implements AsyncDisposable {
  /** Goes with the agent. */
  readonly directory: string;
  readonly process: ChildProcess;
  readonly #exited: Promise<unknown>;
  readonly #sockets: Socket[] = [];
  #stderr = "";

  private constructor(child: ChildProcess, directory: string) {
    this.process = child;
    this.directory = directory;
    this.#exited = once(child, "exit");
    child.stderr?.on("data", (chunk) => {
      this.#stderr += chunk;
    });
  }

  static async start(options: AgentProcessOptions = {}): Promise<AgentUnderTest> {
    const { path } = await buildAgent({ variant: options.variant ?? "sanitize" });
    const directory = mkdtempSync(join(tmpdir(), "flurry-agent-"));
    const root = join(directory, "root");
    if (options.identity) mkdirSync(root);
    const argv = [
      ...(options.wrapper ?? (options.identity ? OWN_HOSTNAME : [])),
      path,
      ...(options.args ?? (options.identity ? ["--set-hostname", "--identity-root", root] : [])),
      "--listen",
      join(directory, "socket"),
    ];
    const child = spawn(argv[0]!, argv.slice(1), { stdio: ["ignore", "pipe", "pipe"] });
    const agent = new AgentUnderTest(child, directory);
    const [line] = await Promise.race([once(child.stdout!, "data"), once(child, "exit")]);
    if (String(line).trim() !== "listening") throw new Error(`The agent did not start: ${agent.#stderr}`);
    return agent;
  }

  get pid(): number {
    return this.process.pid!;
  }

  /** Where it has the files of an identity. */
  get root(): string {
    return join(this.directory, "root");
  }

  /** Whether it still runs. */
  get alive(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  get exited(): Promise<unknown> {
    return this.#exited;
  }

  /** Resident memory in KiB. */
  get residentKiB(): number {
    const status = readFileSync(`/proc/${this.pid}/status`, "utf8");
    return Number(/VmRSS:\s+(\d+)/.exec(status)?.[1]);
  }

  /** A bare connection, for what no client would send. */
  async socket(): Promise<Socket> {
    const socket = connect(join(this.directory, "socket"));
    this.#sockets.push(socket);
    socket.on("error", () => undefined); // a reset is what some tests are after
    await once(socket, "connect");
    return socket;
  }

  async client(options: AgentClientOptions = {}): Promise<{ client: AgentClient; socket: Socket }> {
    const socket = await this.socket();
    return { client: AgentClient.over(socket, options), socket };
  }

  /** Ends the agent; throws if a sanitizer found something in it. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (this.alive) this.process.kill("SIGKILL");
    await this.#exited;
    rmSync(this.directory, { recursive: true, force: true });
    if (/Sanitizer|runtime error/.test(this.#stderr)) throw new Error(this.#stderr);
  }
}
