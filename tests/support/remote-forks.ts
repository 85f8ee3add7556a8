import type { ChildProcessWithoutNullStreams } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { buildGuestProgram, FAULTS_SOURCE } from "../../bench/guest/build.ts";
import type { ServedStats } from "../../memserver/peer/served-connection.ts";
import { programArgv } from "../../runtime/adapters/program.ts";
import type { MemoryMode, OpenParentOptions } from "../../runtime/fork/open-parent.ts";
import { FAULTS, FAULTS_MIB, SUM_RIGHT } from "./memserver-lazy.ts";
import type { RemoteSite } from "./remote-site.ts";

/** What a `remote-runtime.ts` is asked for. */
export type RemoteRequest =
  /** Opens the parent of `checkedOptions`. */
  | { op: "open"; peers: readonly string[]; memory?: MemoryMode }
  | { op: "fork"; child: string }
  | { op: "run"; child: string; argv: readonly string[] }
  | { op: "end"; child: string }
  | { op: "state" }
  /** Gives its frozen parents to other hosts, at any port of an address. */
  | { op: "serve"; host: string }
  | { op: "served" };

interface Answers {
  open: { steps: string[] };
  fork: { lazy: boolean };
  run: { code: number | null; stdout: string; stderr: string };
  end: Record<never, never>;
  state: {
    /** Whether children that are forked now have their memory page by page; undefined without a parent. */
    lazy: boolean | undefined;
    /** Process id of its memserver, and how often it has started one. */
    memserver: number | undefined;
    starts: number;
    /** Processes of VMs, and of the memserver. */
    vms: number;
  };
  serve: { address: string };
  served: ServedStats;
}

export type RemoteAnswer<Op extends RemoteRequest["op"]> = Answers[Op];

/** A parent whose guest has memory that it can check, and that does not compress. */
export async function checkedOptions(): Promise<Pick<OpenParentOptions, "files" | "warmUp" | "memMiB">> {
  const data = await buildGuestProgram(FAULTS_SOURCE);
  return {
    memMiB: 128,
    files: [{ path: FAULTS, data, mode: 0o755 }],
    warmUp: { argv: ["/bin/sh", "-c", `echo frozen > /run/state; ${FAULTS} start ${FAULTS_MIB} 7`] },
  };
}

/** A runtime in a process of its own on a host, that forks children and tells what becomes of them. */
export class RemoteForks implements AsyncDisposable {
  readonly #process: ChildProcessWithoutNullStreams;
  readonly #pending = new Map<number, PromiseWithResolvers<unknown>>();
  readonly #exited: Promise<unknown>;
  #lastId = 0;
  #stderr = "";

  constructor(site: RemoteSite) {
    const argv = programArgv(join(import.meta.dirname, "remote-runtime.ts"));
    this.#process = site.host.exec(argv, { env: { ...process.env, ...site.env } });
    this.#exited = once(this.#process, "exit");
    this.#process.stderr.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    createInterface({ input: this.#process.stdout }).on("line", (line) => {
      const { id, answer, error } = JSON.parse(line);
      const pending = this.#pending.get(id);
      this.#pending.delete(id);
      if (error) pending?.reject(Object.assign(new Error(error.message), { code: error.code }));
      else pending?.resolve(answer);
    });
    this.#process.once("close", () => {
      for (const { reject } of this.#pending.values())
        reject(new Error(`The runtime ended: ${this.#stderr}`));
    });
  }

  async ask<Op extends RemoteRequest["op"]>(
    op: Op,
    request: Omit<Extract<RemoteRequest, { op: Op }>, "op">,
  ): Promise<RemoteAnswer<Op>> {
    const pending = Promise.withResolvers<unknown>();
    const id = ++this.#lastId;
    this.#pending.set(id, pending);
    this.#process.stdin.write(`${JSON.stringify({ id, op, ...request })}\n`);
    return (await pending.promise) as RemoteAnswer<Op>;
  }

  /** Runs a shell script in a child. Returns what it prints. */
  async run(child: string, script: string): Promise<string> {
    const { code, stdout, stderr } = await this.ask("run", { child, argv: ["/bin/sh", "-c", script] });
    if (code !== 0) throw new Error(`"${script}" ended with ${code}: ${stderr}`);
    return stdout;
  }

  /** Has a child read all of its checked memory. Throws when it is not as it was frozen. */
  async check(child: string): Promise<void> {
    const found = await this.run(child, `${FAULTS} sum`);
    if (found.trim() !== JSON.stringify(SUM_RIGHT)) throw new Error(`The memory of ${child} is ${found}`);
  }

  /** Ends it with SIGKILL: it has no chance to clean up, or to say good-bye. */
  async kill(): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#exited;
  }

  /** Has it end what it has, and itself. Returns its exit status. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.stdin.end();
    await this.#exited;
  }
}
