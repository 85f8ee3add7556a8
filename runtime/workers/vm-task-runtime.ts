import { hostname } from "node:os";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { getLogger } from "@logtape/logtape";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { imageOf, isModule, type WorkerSpec } from "../api/mod.ts";
import { type Clock, systemClock } from "../clock.ts";
import type { Child } from "../fork/child.ts";
import { watchChildren } from "../fork/child-watch.ts";
import type { VmTree } from "../fork/family/vm-tree.ts";
import type { Identity } from "../fork/identity.ts";
import { Memserver } from "../fork/memserver.ts";
import type { Parent } from "../fork/parent.ts";
import { memserverKeys } from "../home.ts";
import { ForkOutputs } from "../jobs/fork-outputs.ts";
import type { Readiness } from "../jobs/ports.ts";
import { runTask } from "../jobs/task.ts";
import type { Attempt, AttemptExit, AttemptIo, ChildObserver, TaskRuntime } from "../jobs/task-runtime.ts";
import type { AddressGuard } from "../net/address-guard.ts";
import { knownAccelerator } from "../vm/accelerator.ts";
import { Host } from "../vm/host.ts";
import type { Accelerator } from "../vm/profile.ts";
import { Families } from "./families.ts";
import { JsChild } from "./js/js-child.ts";
import { JsServices } from "./js/js-services.ts";
import { runJsTask, TaskLog } from "./js/js-task.ts";
import { outboundGuard, outboundOf } from "./js/outbound.ts";
import { LivenessProbe } from "./liveness-probe.ts";
import { receiptOf } from "./receipt.ts";
import { Forest } from "./vms/forest.ts";
import { VmService } from "./vms/vm-service.ts";

const logger = getLogger(["flurry", "workers"]);

/** Milliseconds until a memserver is told again that it is to serve other hosts. */
const LISTEN_WAIT_MS = 1000;
export interface VmTaskRuntimeOptions {
  /** Data directory. @default flurryHome() */
  home?: string | undefined;
  /** Attempts at the same time. @default what the host can take */
  slots?: number | undefined;
  /** Parents kept open; more only while they have running children. @default 8 */
  parents?: number | undefined;
  /** Addresses (`HOST:PORT`) of other hosts' memservers: a parent that one of them has is not booted here. */
  peers?: readonly string[] | undefined;
  /** Milliseconds that a guest may leave a question unanswered before it counts as dead. @default 60000 */
  silenceMs?: number | undefined;
  /** Longest warm-up in milliseconds. @default 600000 */
  warmUpTimeoutMs?: number | undefined;
  /** Hosts, as `host` or `host:port`, that workers may be allowed to ask although they are not public. */
  outboundAllow?: readonly string[] | undefined;
  clock?: Clock | undefined;
  signal?: AbortSignal | undefined;
}

/** Runs tasks and serves requests in forked VMs. Parents are made when they are first asked for, and kept. */
export class VmTaskRuntime implements TaskRuntime {
  readonly name = hostname();
  readonly host: Host;
  /** Answers HTTP requests with workers that are JS modules. */
  readonly requests: JsServices;
  /** VMs that are made, forked and ended by hand. */
  readonly vms: VmService;
  readonly #options: VmTaskRuntimeOptions;
  readonly #clock: Clock;
  readonly #memserver: Memserver;
  readonly #families: Families;
  readonly #forest: Forest;
  readonly #guard: AddressGuard;
  readonly #running = new Set<Promise<unknown>>();
  readonly #stop = new AbortController();

  private constructor(host: Host, accel: Accelerator | undefined, options: VmTaskRuntimeOptions) {
    this.host = host;
    this.#options = options;
    this.#clock = options.clock ?? systemClock;
    this.#memserver = new Memserver({ host, keys: memserverKeys(host.home) });
    const { slots, parents, peers, warmUpTimeoutMs } = options;
    this.#families = new Families({
      ...{ host, memserver: this.#memserver, accel },
      ...{ slots, parents, peers, warmUpTimeoutMs },
    });
    this.#forest = new Forest(this.#families, this.#clock);
    this.vms = new VmService({ host, families: this.#families, forest: this.#forest, clock: this.#clock });
    this.#guard = outboundGuard({ allow: options.outboundAllow ?? [] });
    this.requests = new JsServices(this.#families, this.#guard);
  }

  /** @throws FlurryError QEMU_NOT_FOUND, BAD_ARGUMENT */
  static async open(options: VmTaskRuntimeOptions = {}): Promise<VmTaskRuntime> {
    const { home, signal } = options;
    const host = await Host.open({ ...(home && { home }), ...(signal && { signal }) });
    try {
      return new VmTaskRuntime(host, await knownAccelerator(host), options);
    } catch (error) {
      await host[Symbol.asyncDispose]();
      throw error;
    }
  }

  get accel(): Accelerator | undefined {
    return this.#families.accel;
  }

  get cores(): number {
    return this.host.cores;
  }

  get slots(): number {
    return this.#families.slots;
  }

  get memoryBytes(): number {
    return this.#families.memoryBytes;
  }

  async prepare(family: string, spec: WorkerSpec, signal: AbortSignal): Promise<void> {
    await this.#families.prepare(family, spec, signal);
  }

  readiness(family: string): Readiness {
    return this.#families.readiness(family);
  }

  onReadiness(listener: (family: string) => void): Disposable {
    return this.#families.onReadiness(listener);
  }

  /** Hears from now on what children prove. */
  watchChildren(observer: ChildObserver): Disposable {
    return watchChildren(this.host, {
      proven: (proof) => observer.proven({ vm: proof.sent.vmId, receipt: () => receiptOf(proof) }),
      unproven: ({ field }) => observer.unproven(field),
    });
  }

  async admit(family: string, signal: AbortSignal): Promise<Disposable> {
    return await this.#families.admit(family, signal);
  }

  async run(attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit> {
    const running = this.#run(attempt, io, AbortSignal.any([signal, this.#stop.signal]));
    this.#running.add(running);
    try {
      return await running;
    } finally {
      this.#running.delete(running);
    }
  }

  /**
   * Gives the frozen parents of this host to other hosts. Returns the port that is listened on.
   *
   * @param port - 0 for any that is free
   * @throws FlurryError MEMSERVER_FAILED
   */
  async servePages(hostname: string, port: number): Promise<number> {
    const dir = join(this.host.home, "parents");
    const bound = await this.#memserver.listen(hostname, port, dir);
    let ended = false;
    const goOn = async () => {
      for (let waitMs = 0; ended && !this.#stop.signal.aborted; waitMs = LISTEN_WAIT_MS) {
        await delay(waitMs, undefined, { signal: this.#stop.signal }).catch(() => undefined);
        ended = false;
        await this.#memserver.listen(hostname, bound, dir).catch((error) => {
          ended = true;
          if (this.#stop.signal.aborted) return;
          logger.warn("Other hosts cannot be given frozen parents: {error}", { error });
        });
      }
    };
    // Others may be in the midst of what they have from here, and know where it is.
    let going = Promise.resolve();
    const onDeath = () => {
      ended = true;
      const next = going.then(goOn);
      going = next;
      this.#running.add(next);
      void next.finally(() => this.#running.delete(next));
    };
    this.#memserver.watch("pages for other hosts", () => undefined, onDeath);
    return bound;
  }

  /** Ends what runs, and every VM and file of this runtime. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.allSettled(this.#running);
    await this.requests[Symbol.asyncDispose]();
    await this.vms[Symbol.asyncDispose]();
    await this.#families[Symbol.asyncDispose]();
    await this.#memserver[Symbol.asyncDispose]();
    await this.host[Symbol.asyncDispose]();
  }

  async #run(attempt: Attempt, io: AttemptIo, signal: AbortSignal): Promise<AttemptExit> {
    const { family, spec } = attempt;
    using hold = await this.#families.hold(family, spec, signal);
    try {
      const runIn = isModule(spec) ? this.#runModule : this.#runCommand;
      const exit = await runIn.call(this, hold.parent, attempt, io, signal);
      this.#families.worked(family);
      return exit;
    } catch (error) {
      if (lacksMemory(error)) this.#families.parentLost(family, hold.parent);
      throw error;
    }
  }

  async #runCommand(
    parent: Parent,
    attempt: Attempt,
    io: AttemptIo,
    signal: AbortSignal,
  ): Promise<AttemptExit> {
    const beganAt = this.#clock.now();
    await using tree = this.#treeOf(attempt, io);
    const { child } = await tree.root((node) =>
      this.#fork(attempt, parent, signal, (identity) =>
        parent.fork({ identity, onCall: (call) => node.onCall(call), signal }),
      ),
    );
    await io.started(startOf(child, beganAt));
    const { spec, env, index, stdin, timeoutMs } = attempt;
    const task = {
      index,
      argv: spec.command ?? [],
      env: { ...env, FLURRY_VM_ID: child.id },
      cwd: spec.cwd,
      stdin,
      timeoutMs,
      outputs: { file: io.artifact.bind(io) },
    };
    return await this.#watched(child, signal, async (limit) => {
      const { code, signal: endedBy } = await runTask(child, task, io.output.bind(io), limit);
      return { exitCode: code, signal: endedBy };
    });
  }

  async #runModule(
    parent: Parent,
    attempt: Attempt,
    io: AttemptIo,
    signal: AbortSignal,
  ): Promise<AttemptExit> {
    const beganAt = this.#clock.now();
    const log = new TaskLog(io);
    await using tree = this.#treeOf(attempt, io);
    let worker: JsChild | undefined;
    await tree.root((node) =>
      this.#fork(attempt, parent, signal, async ({ index, hostname: name }) => {
        worker = await JsChild.fork(parent, {
          ...{ index, name, env: attempt.env, secrets: {}, signal },
          output: { onLog: (_vm, entry) => log.write(entry) },
          outbound: outboundOf({ allow: attempt.spec.allow ?? [], guard: this.#guard }),
          onCall: (call) => node.onCall(call),
        });
        return worker.vm;
      }),
    );
    const child = worker!;
    await io.started(startOf(child, beganAt));
    return await this.#watched(child, signal, (limit) => runJsTask(child, attempt, log, limit));
  }

  /** The VM of an attempt and what is forked from it: all of it goes with the attempt. */
  #treeOf({ family, spec, job, index, owner, maxVms }: Attempt, io: AttemptIo): VmTree {
    const { max = 64, generations, users } = spec.forks ?? {};
    const info = {
      ...{ family, image: imageOf(spec), task: { job, index }, checkpoint: null },
      owner: { id: owner, vms: maxVms },
    };
    const outputs = new ForkOutputs(io.output.bind(io));
    return this.#forest.plant(info, {
      maxVms: max,
      maxGenerations: generations,
      denial: (uid) => (users && !users.includes(uid) ? `User ${uid} may not fork this VM` : undefined),
      output: (node, stream, chunk) => outputs.write(node, stream, chunk),
      outputEnd: (node) => outputs.end(node),
    });
  }

  /** Does work in a child, which is given up when its guest leaves questions unanswered. */
  async #watched<T>(
    child: Pick<Child, "id" | "agent">,
    signal: AbortSignal,
    work: (limit: AbortSignal) => Promise<T>,
  ): Promise<T> {
    const { silenceMs = 60_000 } = this.#options;
    using probe = new LivenessProbe(child.agent, silenceMs);
    try {
      return await work(AbortSignal.any([signal, probe.lost]));
    } catch (error) {
      if (signal.aborted || !probe.lost.aborted) throw error;
      throw new FlurryError("CHILD_DIED", `${child.id} was killed: it has not answered for ${silenceMs} ms`, {
        cause: error,
      });
    }
  }

  async #fork<C>(
    attempt: Attempt,
    parent: Parent,
    signal: AbortSignal,
    fork: (identity: Identity) => Promise<C>,
  ): Promise<C> {
    const identity = { index: attempt.index, hostname: hostNameOf(attempt) };
    return await this.#families.fork(attempt.family, parent, signal, () => fork(identity));
  }
}

/** When a child ran, and when it had proven who it is, by the wall clock. */
function startOf(
  { id, times }: Pick<Child, "id" | "times">,
  beganAt: number,
): Parameters<AttemptIo["started"]>[0] {
  const shellAt = beganAt + times.shellMs;
  return { vm: id, beganAt, runningAt: shellAt + times.runningMs, identifiedAt: shellAt + times.answerMs };
}

/** Whether it is for want of its memory that a child did not start, or was killed. */
function lacksMemory(error: unknown): boolean {
  if (codeOf(error) === "PAGES_UNAVAILABLE") return true;
  return codeOf(error) === "CHILD_DIED" && error instanceof Error && lacksMemory(error.cause);
}

/** A host name may have 63 characters of a few kinds. */
function hostNameOf({ name, index }: Attempt): string {
  return `${name.replace(/[^A-Za-z0-9-]+/g, "-").slice(0, 48) || "task"}-${index}`;
}
