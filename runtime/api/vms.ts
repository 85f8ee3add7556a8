import { z } from "zod";
import { Environment, Failure, Name, pageOf, Time } from "./common.ts";
import { JobId, WorkerRef } from "./jobs.ts";
import { VmId } from "./receipts.ts";
import { Argv, GuestPath, WorkerSpec } from "./workers.ts";

/** Most bytes that are told of what a program has printed, of each of its two outputs. */
export const MAX_EXEC_BYTES = 1024 * 1024;

/** One VM that runs. */
export const Vm = z
  .object({
    id: VmId,
    owner: z.string().meta({ description: 'Id of the key that it belongs to; "" without keys' }),
    image: z.string(),
    parent: VmId.optional().meta({ description: "The VM that it was forked from, which may be gone by now" }),
    index: z.int().meta({ description: "From 1 on among the VMs of one fork; 0 of one that was not forked" }),
    generation: z.int().meta({ description: "One more than its parent's; 0 of one that was not forked" }),
    checkpoint: z.string().optional().meta({ description: "What it was made of" }),
    task: z
      .object({ job: JobId, index: z.int() })
      .optional()
      .meta({ description: "What it, or the VM that its tree began with, was made for" }),
    createdAt: Time,
    memoryBytes: z.int().meta({ description: "Of the guest" }),
    privateBytes: z.int().meta({ description: "Memory of the host that is this VM's alone" }),
  })
  .meta({ id: "Vm" });
export type Vm = z.infer<typeof Vm>;
export const VmPage = pageOf(Vm).meta({ id: "VmPage" });

const { image, files, warmUp, memoryMiB, cpus, memory } = WorkerSpec.shape;

/** What a VM by hand is made of: what makes a worker's parent, without what is each task's. */
export const VmSpec = z
  .strictObject({ image: image.unwrap(), files, warmUp, memoryMiB, cpus, memory })
  .meta({ id: "VmSpec", example: { image: "base", memoryMiB: 256 } });
export type VmSpec = z.infer<typeof VmSpec>;

/** `POST /v1/vms`. */
export const VmCreate = z
  .union([
    z.strictObject({
      worker: z.union([WorkerRef, VmSpec]).meta({
        description:
          "A deployed worker with an image, as `name` or `name@version`, or what is described here",
      }),
    }),
    z.strictObject({ checkpoint: Name.meta({ description: "One of your own" }) }),
  ])
  .meta({ id: "VmCreate", example: { worker: { image: "base" } } });
export type VmCreate = z.infer<typeof VmCreate>;
export type VmCreateInput = z.input<typeof VmCreate>;

export const VmFork = z
  .strictObject({
    count: z.int().min(1).max(1000).default(1).meta({ description: "How many more there are" }),
  })
  .meta({ id: "VmFork", example: { count: 2 } });

/** How one child of a fork came out. */
export const VmForkResult = z
  .discriminatedUnion("status", [
    z.object({ status: z.literal("fulfilled"), vm: Vm }),
    z.object({ status: z.literal("rejected"), error: Failure }),
  ])
  .meta({ id: "VmForkResult" });
export type VmForkResult = z.infer<typeof VmForkResult>;
export const VmForkResults = z.object({ items: z.array(VmForkResult) }).meta({ id: "VmForkResults" });

export const VmsEnded = z
  .object({ ids: z.array(VmId).meta({ description: "The VM, and all that were forked from it" }) })
  .meta({ id: "VmsEnded" });

/** A program to run in a VM. */
export const VmExec = z
  .strictObject({
    argv: Argv.refine((argv) => argv[0] !== "", "has an empty program"),
    env: Environment.default({}),
    cwd: GuestPath.optional().meta({ description: "@default /" }),
    stdin: z
      .union([z.string(), z.strictObject({ base64: z.base64() })])
      .optional()
      .meta({ description: "What it reads, as text or in base64; without it there is nothing to read" }),
    timeoutMs: z.int().min(1).max(86_400_000).optional().meta({ description: "It is killed after that" }),
  })
  .meta({ id: "VmExec", example: { argv: ["uname", "-a"] } });
export type VmExec = z.infer<typeof VmExec>;
export type VmExecInput = z.input<typeof VmExec>;

const ended = {
  exitCode: z.int().optional(),
  signal: z.string().optional().meta({ description: "What killed it; then there is no exit code" }),
};

/** How a program ended, with the start of what it printed. */
export const VmExecResult = z
  .object({
    ...ended,
    stdout: z.string().meta({ description: "Its first MiB, as UTF-8" }),
    stderr: z.string().meta({ description: "Its first MiB, as UTF-8" }),
    stdoutTruncated: z.boolean(),
    stderrTruncated: z.boolean(),
  })
  .meta({ id: "VmExecResult" });
export type VmExecResult = z.infer<typeof VmExecResult>;

/**
 * A piece of what a program prints, while it runs: `text`, or `base64` where that is no UTF-8. The last line says how
 * it ended, or has `error`: it was killed after `timeoutMs`, or with its VM.
 */
export const VmExecLine = z
  .union([
    z.object({ stream: z.enum(["stdout", "stderr"]), text: z.string() }),
    z.object({ stream: z.enum(["stdout", "stderr"]), base64: z.base64() }),
    z.object({ exitCode: z.int() }),
    z.object({ signal: z.string() }),
    z.object({ error: Failure }),
  ])
  .meta({ id: "VmExecLine" });
export type VmExecLine = z.infer<typeof VmExecLine>;

export const VmFileWritten = z
  .object({ path: z.string().meta({ description: "In the guest" }), size: z.int() })
  .meta({ id: "VmFileWritten" });
export type VmFileWritten = z.infer<typeof VmFileWritten>;

export const CheckpointCreate = z.strictObject({ name: Name }).meta({ id: "CheckpointCreate" });

/** A VM's state with a name, from which others can be made. */
export const Checkpoint = z
  .object({
    name: Name,
    owner: z.string().meta({ description: 'Id of the key that it belongs to; "" without keys' }),
    image: z.string(),
    vm: VmId.meta({ description: "The VM that it is of, which may be gone by now" }),
    generation: z.int().meta({ description: "Of that VM" }),
    createdAt: Time,
    memoryBytes: z.int().meta({ description: "Of the guest" }),
    storedBytes: z.int().meta({ description: "On disk" }),
  })
  .meta({ id: "Checkpoint" });
export type Checkpoint = z.infer<typeof Checkpoint>;
export const CheckpointPage = pageOf(Checkpoint).meta({ id: "CheckpointPage" });
