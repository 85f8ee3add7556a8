import { codeOf, FlurryError } from "../../../errors/errors.ts";
import { AgentError, type GuestCall, signalNumber } from "../../../guest-agent/protocol/mod.ts";
import { abortError } from "../../vm/qemu-process.ts";
import type { Child } from "../child.ts";
import { Generation } from "../generation.ts";
import { freezeLive } from "../live-freeze.ts";
import { CallError } from "./call-error.ts";
import { Conversation } from "./conversation.ts";
import type { Ending } from "./ending.ts";
import { passFiles } from "./pass-files.ts";
import type { CallState, Snapshot } from "./snapshot.ts";
import type { ForkTicket, TicketChild } from "./ticket.ts";
import type { Tree, TreeVm } from "./tree.ts";

const ADD = Symbol("add");
/** Longest time in which what a child leaves is passed to its parent, in ms. */
const PASS_MS = 300_000;
/** Longest time for what it has printed last, in ms. */
const LAST_OUTPUTS_MS = 10_000;

/** Where a new VM stands in its tree. */
export interface NodePlace extends Pick<TreeVm, "index" | "generation" | "ticket"> {
  parent: VmNode | undefined;
}

/** One VM of a tree: its calls, its tickets, its end. */
export class VmNode implements TicketChild, TreeVm {
  readonly tree: Tree<VmNode>;
  readonly index: number;
  readonly generation: number;
  readonly parent: VmNode | undefined;
  readonly ticket: string | undefined;
  /** Resolves when its VM is gone. */
  readonly ended: Promise<Ending>;
  readonly tickets = new Map<string, ForkTicket>();
  readonly checkpoints = new Map<string, Snapshot>();
  /** Resolves when its VM runs, or is not to run any more. */
  readonly started: Promise<void>;
  readonly #start = Promise.withResolvers<void>();
  readonly #end = Promise.withResolvers<Ending>();
  readonly #stop = new AbortController();
  readonly #children = new Set<VmNode>();
  readonly #conversations = new Map<number, Conversation>();
  readonly #own = new DisposableStack();
  #child: Child | undefined;
  #vm = "-";
  #starting: Promise<unknown> = Promise.resolve();
  #ending: Promise<boolean> | undefined;
  readonly #reads: Promise<void>[] = [];
  /** One freeze after the other. */
  #freezes: Promise<unknown> = Promise.resolve();
  readonly #names = { t: 0, c: 0 };

  constructor(tree: Tree<VmNode>, place: NodePlace) {
    this.tree = tree;
    this.index = place.index;
    this.generation = place.generation;
    this.parent = place.parent;
    this.ticket = place.ticket;
    this.ended = this.#end.promise;
    this.started = this.#start.promise;
    if (place.parent) this.#own.use(place.parent[ADD](this));
    this.#own.use(tree.add(this));
  }

  get vm(): string {
    return this.#vm;
  }

  /** @throws FlurryError CHILD_DIED when it is not there (yet, or any more) */
  get child(): Child {
    if (this.#child && !this.#ending) return this.#child;
    throw new FlurryError("CHILD_DIED", "The VM has ended");
  }

  /** Aborted when it ends. */
  get stopped(): AbortSignal {
    return this.#stop.signal;
  }

  get children(): readonly VmNode[] {
    return [...this.#children];
  }

  /** Gives it what goes at its end. */
  use(resource: Disposable): void {
    this.#own.use(resource);
  }

  newName(kind: "t" | "c"): string {
    this.#names[kind] += 1;
    return `${kind}${this.#names[kind]}`;
  }

  /** Serves a program's call. @param snapshot - of the VM that this one is a fork of, for calls that were open in it */
  onCall(call: GuestCall, snapshot?: Pick<Snapshot, "calls" | "caller">, first?: string): void {
    const was = snapshot?.calls.get(call.id);
    const conversation = new Conversation(call, this.tree.answerer(this));
    this.#conversations.set(call.id, conversation);
    void this.#converse(call, conversation, was, call.id === snapshot?.caller ? first : undefined)
      .catch((error) => {
        // Of who went away there is nothing to say.
        if (!(error instanceof AgentError)) this.tree.trouble(`A call of ${this.vm} failed`, error);
        if (this.#child?.agent.isOpen) call.end();
      })
      .finally(() => this.#conversations.delete(call.id));
    if (was !== undefined) call.resume();
  }

  /** Has its VM forked, and takes it over. @throws whatever `fork` throws; FlurryError ABORTED when it ended meanwhile */
  async start(fork: () => Promise<Child>): Promise<void> {
    const starting = this.#begin(fork);
    this.#starting = starting.catch(() => undefined);
    await starting;
  }

  async #begin(fork: () => Promise<Child>): Promise<void> {
    const child = await fork();
    if (this.stopped.aborted) {
      await child[Symbol.asyncDispose]();
      throw abortError(this.stopped);
    }
    this.#child = child;
    this.#vm = child.id;
    // Nobody speaks to the worker-host of a fork: what it writes must not hold it up.
    if (this.parent) child.workerSocket?.resume();
    const running = this.tree.policy.running?.(this, child);
    if (running) this.#own.use(running);
    void child.exited.then(() => this.#died(child));
    this.#readOutputs(child);
    this.#start.resolve();
  }

  /** Host name of the VM that this is, or comes from; "" before that runs. */
  get rootHostname(): string {
    return this.parent ? this.parent.rootHostname : (this.#child?.identity.hostname ?? "");
  }

  /** Has it end by itself when the programs that it was forked with have. */
  endWithPrograms(): void {
    const exits = (this.#child?.inherited ?? []).flatMap(({ exited }) => exited ?? []);
    if (exits.length === 0) return;
    void Promise.all(exits).then(
      async (all) => {
        const last = all.at(-1)!;
        // As a shell says it of a signal.
        await this.exit(last.code ?? 128 + (signalNumber(last.signal ?? "") ?? 0), new Uint8Array());
      },
      () => undefined, // its channel is gone, and so is it
    );
  }

  /** Takes its state, while it goes on. @param caller - the call that is answered in each fork */
  async snapshot(caller: number | undefined): Promise<{ make(): Promise<Snapshot> }> {
    const freeze = this.#freezes.then(async () => {
      const calls = new Map<number, CallState>();
      const atRest = () => {
        for (const [id, { state }] of this.#conversations) calls.set(id, state);
      };
      const { child } = this;
      const live = await freezeLive(child, { atRest, signal: this.stopped });
      return {
        make: async () => ({ generation: await Generation.of(child, live, this.stopped), calls, caller }),
      };
    });
    this.#freezes = freeze.catch(() => undefined);
    return await freeze;
  }

  /**
   * Ends with a status and a result; what it has left is passed to its parent before.
   *
   * @throws CallError NOT_A_CHILD
   */
  async exit(status: number, result: Uint8Array): Promise<void> {
    const { parent, ticket } = this;
    if (!parent) throw new CallError("NOT_A_CHILD", "Nobody has forked this VM");
    await this.#finish(async () => {
      const files = ticket === undefined ? [] : await this.#passFiles(parent, `/out/${ticket}/${this.index}`);
      await this.#lastOutputs();
      return { state: "exited", status, result, files };
    });
  }

  /** Ends it, and all below it; false if it was ending already. Resolves when it is gone. */
  async kill(reason: string): Promise<boolean> {
    return await this.#finish(async () => ({ state: "killed", reason }));
  }

  /** It did not start. */
  async fail(reason: string): Promise<void> {
    await this.#finish(async () => ({ state: "failed", reason }));
  }

  [ADD](child: VmNode): Disposable {
    this.#children.add(child);
    return { [Symbol.dispose]: () => void this.#children.delete(child) };
  }

  async #died(child: Child): Promise<void> {
    if (this.#ending) return;
    const words = (await child.lastWords()).trim().split("\n").at(-1) ?? "";
    await this.#finish(async () => ({ state: "died", reason: `its VM has ended${words && `: ${words}`}` }));
  }

  #finish(ending: () => Promise<Ending>): Promise<boolean> {
    if (this.#ending) return this.#ending.then(() => false);
    this.#ending = this.#finishOnce(ending);
    return this.#ending;
  }

  async #finishOnce(ending: () => Promise<Ending>): Promise<boolean> {
    let how: Ending;
    try {
      how = await ending();
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      how = { state: "died", reason: `what it left could not be passed on: ${reason}` };
    }
    this.#stop.abort();
    this.#start.resolve();
    await Promise.all([...this.#children].map((child) => child.kill("the VM that forked it has ended")));
    await Promise.all([this.#freezes, this.#starting]);
    for (const ticket of this.tickets.values()) ticket[Symbol.dispose]();
    try {
      await Promise.all(
        [...this.checkpoints.values()].map(({ generation }) => generation[Symbol.asyncDispose]()),
      );
      await this.#child?.[Symbol.asyncDispose]();
      await Promise.all(this.#reads);
      await this.tree.policy.outputEnd?.(this);
    } catch (error) {
      this.tree.trouble(`${this.vm} could not be ended`, error);
    }
    this.#own.dispose();
    // Its ticket may be kept for long.
    this.#child = undefined;
    this.#end.resolve(how);
    return true;
  }

  /** What its programs have written may be in their pipes still: a VM at rest has told all of it. */
  async #lastOutputs(): Promise<void> {
    if (!this.#child || this.#child.inherited.length === 0) return;
    await this.#freezes;
    await this.#child.agent.quiesce({ live: true, timeoutMs: LAST_OUTPUTS_MS }).catch((error) => {
      this.tree.trouble(`The last outputs of ${this.vm} may be missing`, error);
    });
  }

  async #passFiles(parent: VmNode, to: string) {
    const child = this.#child;
    // A parent that ends takes this one with it.
    if (!child || parent.stopped.aborted) return [];
    const since = Number(child.proof.read.beforeNs / 1_000_000n);
    const signal = AbortSignal.any([parent.stopped, AbortSignal.timeout(PASS_MS)]);
    return await passFiles(child.agent, since, parent.child.agent, to, signal);
  }

  async #converse(
    call: GuestCall,
    conversation: Conversation,
    was: CallState | undefined,
    first: string | undefined,
  ): Promise<void> {
    const denial = this.tree.policy.denial?.(call.uid);
    const forked = new CallError("FORKED", "This VM was forked while the call was under way").asLine();
    if (denial !== undefined) await call.write(new CallError("FORK_DENIED", denial).asLine());
    else if (first !== undefined) return await conversation.run(first);
    else if (was === "pending") return await conversation.run(forked);
    else if (was !== "reading") return await conversation.run();
    else await call.write(forked);
    call.end();
  }

  /** What its programs print would hold them up if nobody read it. */
  #readOutputs(child: Child): void {
    for (const { stdout, stderr } of child.inherited) {
      for (const [name, stream] of [
        ["stdout", stdout],
        ["stderr", stderr],
      ] as const) {
        const reading = this.#read(name, stream).catch((error) => {
          if (codeOf(error) !== "AGENT_CLOSED")
            this.tree.trouble(`Cannot pass on what ${this.vm} prints`, error);
        });
        this.#reads.push(reading);
      }
    }
  }

  async #read(name: "stdout" | "stderr", stream: ReadableStream<Uint8Array>): Promise<void> {
    for await (const chunk of stream) await this.tree.policy.output?.(this, name, chunk);
  }
}
