import { FlurryError } from "../../errors/errors.ts";
import {
  AgentError,
  type AgentProcess,
  type ExecOptions,
  type ExitStatus,
} from "../../guest-agent/protocol/mod.ts";
import { imageOf } from "../../runtime/api/mod.ts";
import type {
  CheckpointInfo,
  ForkOutcome,
  VmInfo,
  VmOwner,
  VmSource,
  Vms,
} from "../../runtime/workers/vms/port.ts";

/** A program, as its script sees it. */
export interface ScriptedProgram {
  argv: readonly string[];
  options: ExecOptions;
  /** Of the request; aborted when who asked is gone. */
  signal: AbortSignal;
  print(chunk: string | Uint8Array, stream?: "stdout" | "stderr"): Promise<void>;
  /** All of its standard input. */
  input(): Promise<Uint8Array>;
}

export type ProgramScript = (program: ScriptedProgram) => ExitStatus | Promise<ExitStatus>;

const MIB = 1024 * 1024;

/** VMs in name only, with real rules of whose they are, and programs that are scripts. */
export class ScriptedVms implements Vms {
  readonly vms = new Map<string, VmInfo>();
  readonly kept: CheckpointInfo[] = [];
  /** By VM and path. */
  readonly files = new Map<string, { bytes: Uint8Array; mode: number }>();
  /** What was asked to be made, by whom. */
  readonly made: { source: VmSource; owner: VmOwner }[] = [];
  script: ProgramScript = () => ({ code: 0 });
  /** Fails the child with this place in its fork, from 1 on. */
  failing: (index: number) => unknown = () => undefined;
  /** Holds up what is made, until it is aborted if it likes. */
  before: (signal: AbortSignal) => Promise<void> = async () => undefined;
  #count = 0;

  list(owner: string | undefined): VmInfo[] {
    return [...this.vms.values()].filter((vm) => owner === undefined || vm.owner === owner);
  }

  get(id: string, owner: string | undefined): VmInfo {
    const vm = this.vms.get(id);
    if (vm && (owner === undefined || vm.owner === owner)) return vm;
    throw new FlurryError("VM_NOT_FOUND", `There is no VM "${id}"`);
  }

  async create(source: VmSource, owner: VmOwner, signal: AbortSignal): Promise<VmInfo> {
    this.made.push({ source, owner });
    await this.before(signal);
    if (this.#left(owner) < 1) throw full(owner);
    if (!("checkpoint" in source)) return this.add({ owner: owner.id, image: imageOf(source.spec) });
    const kept = this.kept.find(({ name, owner: id }) => name === source.checkpoint && id === owner.id);
    if (!kept) throw new FlurryError("CHECKPOINT_NOT_FOUND", `There is no checkpoint "${source.checkpoint}"`);
    return this.add({ owner: owner.id, image: kept.image, checkpoint: kept.name });
  }

  async fork(id: string, count: number, owner: VmOwner, signal: AbortSignal): Promise<ForkOutcome[]> {
    const parent = this.get(id, owner.id);
    await this.before(signal);
    if (this.#left(owner) < 1) throw full(owner);
    return Array.from({ length: count }, (_, at): ForkOutcome => {
      const failed = this.failing(at + 1);
      if (failed !== undefined) return { status: "rejected", error: failed };
      if (this.#left(owner) < 1) return { status: "rejected", error: full(owner) };
      const { image, generation, task } = parent;
      const more = { parent: id, index: at + 1, generation: generation + 1, task };
      return { status: "fulfilled", vm: this.add({ owner: parent.owner, image, ...more }) };
    });
  }

  async exec(
    id: string,
    argv: readonly string[],
    options: ExecOptions,
    owner: string | undefined,
  ): Promise<AgentProcess> {
    this.get(id, owner);
    if (argv[0] === "missing") {
      throw new AgentError("AGENT_REFUSED", 'The program "missing": No such file', { errno: "ENOENT" });
    }
    const input = new TransformStream<Uint8Array, Uint8Array>();
    const outputs = { stdout: outputOf(), stderr: outputOf() };
    const { signal = new AbortController().signal } = options;
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => undefined);
    signal.addEventListener("abort", () => aborted.reject(new AgentError("ABORTED", "It was aborted")));
    const run = async (): Promise<ExitStatus> => {
      const exit = await this.script({
        ...{ argv, options, signal },
        print: (chunk, stream = "stdout") => outputs[stream].write(bytesOf(chunk)),
        input: async () => new Uint8Array(await new Response(input.readable).arrayBuffer()),
      });
      return exit;
    };
    const exited = Promise.race([run(), aborted.promise]);
    exited.then(
      () => [outputs.stdout.end(), outputs.stderr.end()],
      (error) => [outputs.stdout.fail(error), outputs.stderr.fail(error)],
    );
    return {
      pid: 1,
      stdin: options.stdin ? input.writable : undefined,
      stdout: outputs.stdout.readable,
      stderr: outputs.stderr.readable,
      exited,
      kill: () => Promise.resolve(false),
    };
  }

  async openFile(id: string, path: string, owner: string | undefined) {
    this.get(id, owner);
    const file = this.files.get(`${id} ${path}`);
    if (!file) throw new AgentError("AGENT_REFUSED", `Reading "${path}": No such file`, { errno: "ENOENT" });
    const { bytes, mode } = file;
    const body = new Response(bytes as Uint8Array<ArrayBuffer>).body ?? new ReadableStream<Uint8Array>();
    return { size: bytes.byteLength, mode, mtimeMs: 1_000_000, body };
  }

  async putFile(
    id: string,
    {
      path,
      mode = 0o644,
      body,
    }: { path: string; mode?: number | undefined; body: ReadableStream<Uint8Array> },
    owner: string | undefined,
  ): Promise<{ size: number }> {
    this.get(id, owner);
    if (path.startsWith("/proc/")) {
      throw new AgentError("AGENT_REFUSED", `Writing "${path}": Permission denied`, { errno: "EACCES" });
    }
    const parts: Uint8Array[] = [];
    for await (const chunk of body) parts.push(chunk);
    const bytes = Buffer.concat(parts);
    this.files.set(`${id} ${path}`, { bytes, mode });
    return { size: bytes.byteLength };
  }

  async kill(id: string, owner: string | undefined): Promise<string[]> {
    this.get(id, owner);
    const ids = [id];
    // Those that are added are looked at as well.
    for (const each of ids)
      ids.push(...this.list(undefined).flatMap((vm) => (vm.parent === each ? [vm.id] : [])));
    for (const each of ids) this.vms.delete(each);
    return ids;
  }

  async checkpoint(id: string, name: string, owner: VmOwner): Promise<CheckpointInfo> {
    const { image, generation } = this.get(id, owner.id);
    if (this.kept.some((each) => each.name === name && each.owner === owner.id)) {
      throw new FlurryError("CHECKPOINT_EXISTS", `There is a checkpoint "${name}" already`);
    }
    const sizes = { memBytes: 256 * MIB, storedBytes: 40 * MIB };
    const kept = { name, owner: owner.id, image, vm: id, generation, createdAt: 1000, ...sizes };
    this.kept.push(kept);
    return kept;
  }

  async checkpoints(owner: string | undefined): Promise<CheckpointInfo[]> {
    return this.kept.filter((each) => owner === undefined || each.owner === owner);
  }

  async removeCheckpoint(name: string, owner: string | undefined): Promise<void> {
    const at = this.kept.findIndex((each) => each.name === name && each.owner === owner);
    if (at < 0) throw new FlurryError("CHECKPOINT_NOT_FOUND", `There is no checkpoint "${name}"`);
    this.kept.splice(at, 1);
  }

  add(more: Partial<VmInfo>): VmInfo {
    const id = `vm-${++this.#count}`;
    const vm: VmInfo = {
      ...{
        id,
        owner: "",
        image: "base",
        parent: null,
        index: 0,
        generation: 0,
        checkpoint: null,
        task: null,
      },
      ...{ createdAt: 1_769_860_800_000, memBytes: 256 * MIB, heldBytes: 3 * MIB },
      ...more,
    };
    this.vms.set(id, vm);
    return vm;
  }

  #left({ id, vms = Number.POSITIVE_INFINITY }: VmOwner): number {
    return vms - this.list(id).length;
  }
}

function full({ vms }: VmOwner): FlurryError {
  return new FlurryError("LIMIT_REACHED", `There is no room for another VM: ${vms} at a time are allowed`);
}

/** An output that holds who prints up until somebody reads. */
function outputOf() {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  const writer = writable.getWriter();
  writer.closed.catch(() => undefined);
  return {
    readable,
    write: (chunk: Uint8Array) => writer.write(chunk),
    end: () => void writer.close().catch(() => undefined),
    fail: (error: unknown) => void writer.abort(error).catch(() => undefined),
  };
}

function bytesOf(chunk: string | Uint8Array): Uint8Array {
  return typeof chunk === "string" ? new TextEncoder().encode(chunk) : chunk;
}
