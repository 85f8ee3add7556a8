import { codeOf, FlurryError } from "../../../errors/errors.ts";
import type { AgentFile, AgentProcess, ExecOptions } from "../../../guest-agent/protocol/mod.ts";
import { imageOf, isModule, type WorkerSpec } from "../../api/mod.ts";
import type { Clock } from "../../clock.ts";
import { startChildren } from "../../fork/family/start-children.ts";
import type { VmNode } from "../../fork/family/vm-node.ts";
import { forkRetrying } from "../../fork/fork-retrying.ts";
import type { ForkOptions } from "../../fork/parent.ts";
import type { Host } from "../../vm/host.ts";
import type { Families } from "../families.ts";
import { CheckpointStore } from "./checkpoint-store.ts";
import type { Forest, FoundVm, TreeInfo } from "./forest.ts";
import type { CheckpointInfo, ForkOutcome, VmInfo, VmOwner, VmSource, Vms } from "./port.ts";

export interface VmServiceOptions {
  host: Host;
  families: Families;
  forest: Forest;
  clock: Clock;
}

/** VMs that are made, forked and ended by hand; and those of tasks, to look at. */
export class VmService implements Vms, AsyncDisposable {
  readonly #families: Families;
  readonly #forest: Forest;
  readonly #checkpoints: CheckpointStore;
  readonly #trees = new Set<AsyncDisposable>();
  /** Of first VMs: when what they came from was given up. */
  readonly #gone = new WeakMap<VmNode, Promise<void>>();
  readonly #stop = new AbortController();

  constructor({ host, families, forest, clock }: VmServiceOptions) {
    this.#families = families;
    this.#forest = forest;
    this.#checkpoints = new CheckpointStore(host, clock);
  }

  list(owner: string | undefined): VmInfo[] {
    return this.#forest
      .list()
      .filter(({ info }) => owner === undefined || info.owner.id === owner)
      .map(infoOf);
  }

  get(id: string, owner: string | undefined): VmInfo {
    return infoOf(this.#find(id, owner));
  }

  async create(source: VmSource, owner: VmOwner, signal: AbortSignal): Promise<VmInfo> {
    if (!this.#forest.mayHave(owner)) throw quotaExceeded(owner);
    const limit = AbortSignal.any([signal, this.#stop.signal]);
    return "checkpoint" in source
      ? await this.#wake(source.checkpoint, owner, limit)
      : await this.#make(source, owner, limit);
  }

  async fork(id: string, count: number, owner: VmOwner, signal: AbortSignal): Promise<ForkOutcome[]> {
    const { node } = this.#find(id, owner.id);
    const places = node.tree.places(count);
    const nodes = await forkNode(node, places);
    const onAbort = () => void Promise.all(nodes.map((each) => each.kill("nobody waits for it")));
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      await Promise.all(nodes.map(({ started }) => started));
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
    if (signal.aborted) throw new FlurryError("ABORTED", "Aborted by the caller", { cause: signal.reason });
    const outcomes = await Promise.all(nodes.map((each) => this.#outcome(each)));
    const missing = Array.from({ length: count - places.length }, () => ({
      status: "rejected" as const,
      error: quotaExceeded(owner),
    }));
    if (places.length === 0) throw quotaExceeded(owner);
    return [...outcomes, ...missing];
  }

  async exec(
    id: string,
    argv: readonly string[],
    options: ExecOptions,
    owner: string | undefined,
  ): Promise<AgentProcess> {
    const { child } = this.#find(id, owner);
    return await child.agent.exec(argv, options).catch(async (error) => {
      throw await child.explain(error);
    });
  }

  async openFile(
    id: string,
    path: string,
    owner: string | undefined,
    signal: AbortSignal,
  ): Promise<AgentFile> {
    const { child } = this.#find(id, owner);
    return await child.agent.openFile(path, { signal }).catch(async (error) => {
      throw await child.explain(error);
    });
  }

  async putFile(
    id: string,
    { path, mode, body }: { path: string; mode?: number | undefined; body: ReadableStream<Uint8Array> },
    owner: string | undefined,
    signal: AbortSignal,
  ): Promise<{ size: number }> {
    const { child } = this.#find(id, owner);
    return await child.agent.putFile(path, body, { mode, signal }).catch(async (error) => {
      throw await child.explain(error);
    });
  }

  async kill(id: string, owner: string | undefined): Promise<string[]> {
    const { node, info } = this.#find(id, owner);
    if (info.task && !node.parent) {
      throw new FlurryError("BAD_ARGUMENT", `VM ${id} is that of a task: ending it would start another one`, {
        hint: `cancel the job: flurry job cancel ${info.task.job}`,
      });
    }
    const ids = withDescendants(node).map(({ vm }) => vm);
    await node.kill("it was ended by hand");
    await this.#gone.get(node);
    return ids.filter((each) => each !== "-");
  }

  async checkpoint(id: string, name: string, owner: VmOwner, signal: AbortSignal): Promise<CheckpointInfo> {
    const { node, info } = this.#find(id, owner.id);
    using _name = this.#checkpoints.reserve(name, owner.id);
    const { make } = await node.snapshot(undefined);
    const snapshot = await make();
    try {
      const { image, family } = info;
      return await this.#checkpoints.put({ name, owner: owner.id, image, family, node, snapshot }, signal);
    } finally {
      await snapshot.generation[Symbol.asyncDispose]();
    }
  }

  async checkpoints(owner: string | undefined): Promise<CheckpointInfo[]> {
    return await this.#checkpoints.list(owner);
  }

  async removeCheckpoint(name: string, owner: string | undefined): Promise<void> {
    await this.#checkpoints.remove(name, owner);
  }

  /** Ends all VMs that were made by hand. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await Promise.all([...this.#trees].map((tree) => tree[Symbol.asyncDispose]()));
  }

  async #make(
    { family, spec }: { family: string; spec: WorkerSpec },
    owner: VmOwner,
    signal: AbortSignal,
  ): Promise<VmInfo> {
    if (isModule(spec)) {
      throw new FlurryError("BAD_ARGUMENT", "A VM by hand is made of an image, not of a module");
    }
    const hold = await this.#families.hold(family, spec, signal);
    const info = { owner, family, image: imageOf(spec), task: null, checkpoint: null };
    const held = { [Symbol.asyncDispose]: async () => hold[Symbol.dispose]() };
    return await this.#root(info, held, signal, (options) =>
      this.#families.fork(family, hold.parent, signal, () => forkRetrying(hold.parent, options)),
    );
  }

  async #wake(name: string, owner: VmOwner, signal: AbortSignal): Promise<VmInfo> {
    const kept = await this.#checkpoints.open(name, owner.id, signal);
    const { image, family } = kept;
    this.#families.know(family, kept.parent.profile);
    const info = { owner, family, image, task: null, checkpoint: name };
    return await this.#root(info, kept, signal, async (options, node) => {
      const onCall: ForkOptions["onCall"] = (call) => node.onCall(call, { calls: kept.calls });
      return await forkRetrying(kept.parent, { ...options, onCall, inheritances: kept.inheritances });
    });
  }

  /** The first VM of a tree; the tree ends with it, and gives up what its VMs come from. */
  async #root(
    info: TreeInfo,
    held: AsyncDisposable,
    signal: AbortSignal,
    fork: (options: ForkOptions, node: VmNode) => ReturnType<typeof forkRetrying>,
  ): Promise<VmInfo> {
    await using stack = new AsyncDisposableStack();
    stack.use(held);
    const place = this.#forest.place(info);
    if (!place) {
      throw new FlurryError("ADMISSION_REFUSED", "There is no memory for another VM on this host", {
        hint: "end some: flurry vm ls",
      });
    }
    stack.use(place);
    const tree = stack.use(this.#forest.plant(info));
    const node = await tree.root((root) =>
      fork({ identity: { index: 0, hostname: "vm" }, onCall: (call) => root.onCall(call), signal }, root),
    );
    const owned = stack.move();
    const ending = { [Symbol.asyncDispose]: () => owned.disposeAsync() };
    this.#trees.add(ending);
    const gone = node.ended.then(async () => {
      this.#trees.delete(ending);
      await owned.disposeAsync();
    });
    this.#gone.set(node, gone);
    return this.get(node.vm, info.owner.id);
  }

  #find(id: string, owner: string | undefined): FoundVm {
    const found = this.#forest.find(id);
    if (found && (owner === undefined || found.info.owner.id === owner)) return found;
    throw new FlurryError("VM_NOT_FOUND", `There is no VM "${id}"`, {
      hint: "flurry vm ls shows those that run",
    });
  }

  async #outcome(node: VmNode): Promise<ForkOutcome> {
    const found = this.#forest.find(node.vm);
    if (found) return { status: "fulfilled", vm: infoOf(found) };
    const ending = await node.ended;
    const reason = ending.state === "exited" ? "it has exited" : ending.reason;
    return { status: "rejected", error: new FlurryError("FORK_FAILED", `A child did not start: ${reason}`) };
  }
}

async function forkNode(node: VmNode, places: Disposable[]): Promise<VmNode[]> {
  if (places.length === 0) return [];
  try {
    const { make } = await node.snapshot(undefined);
    const snapshot = make();
    const nodes = startChildren(node, snapshot, { places });
    void Promise.all(nodes.map(({ started }) => started))
      .then(() => snapshot)
      .then(({ generation }) => generation[Symbol.asyncDispose]())
      .catch((error) => node.tree.trouble("A fork's memory could not be given up", error));
    return nodes;
  } catch (error) {
    for (const place of places) place[Symbol.dispose]();
    if (codeOf(error) === "AGENT_REFUSED") {
      const reason = error instanceof Error ? error.message : String(error);
      throw new FlurryError("FORK_FAILED", `Cannot fork ${node.vm}: ${reason}`, { cause: error });
    }
    throw error;
  }
}

function withDescendants(node: VmNode): VmNode[] {
  return [node, ...node.children.flatMap(withDescendants)];
}

function infoOf({ node, child, info, createdAt }: FoundVm): VmInfo {
  return {
    id: node.vm,
    owner: info.owner.id,
    image: info.image,
    parent: node.parent?.vm ?? null,
    index: node.index,
    generation: node.generation,
    checkpoint: info.checkpoint,
    task: info.task,
    createdAt,
    memBytes: child.memBytes,
    heldBytes: child.heldBytes(),
  };
}

function quotaExceeded(owner: VmOwner): FlurryError {
  const limit =
    owner.vms === undefined ? "the host's memory is used up" : `${owner.vms} at a time are allowed`;
  return new FlurryError("LIMIT_REACHED", `There is no room for another VM: ${limit}`, {
    hint: "end some: flurry vm ls",
  });
}
