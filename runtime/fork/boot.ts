import { chownSync, closeSync, ftruncateSync, openSync, rmSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { AgentClient } from "../../guest-agent/protocol/mod.ts";
import type { Host } from "../vm/host.ts";
import { type BootSource, commandLine, type MachineProfile, type RamSource } from "../vm/profile.ts";
import { QemuProcess } from "../vm/qemu-process.ts";

/** Milliseconds that a guest gets to boot. Emulated, on a busy machine, a boot takes several seconds. */
const BOOT_DEADLINE_MS = 120_000;
/** What QEMU and the kernel's tmpfs need beside the guest's RAM. */
const SHM_MARGIN_BYTES = 8 * 1024 * 1024;

export interface BootOptions {
  host: Host;
  profile: MachineProfile;
  boot: BootSource;
  /** `shared` RAM can be frozen and forked; `anonymous` RAM belongs to a VM that is never forked. */
  ram: "shared" | "anonymous";
  onConsoleLine?: ((line: string) => void) | undefined;
  /** @default 120000 */
  timeoutMs?: number | undefined;
  signal?: AbortSignal | undefined;
}

/** A VM that was booted and whose agent has said hello. */
export interface BootedVm extends AsyncDisposable {
  host: Host;
  profile: MachineProfile;
  qemu: QemuProcess;
  agent: AgentClient;
  /** File that is the VM's RAM, for `shared`. Removed with the VM unless `keepRam` is called. */
  ramPath: string | undefined;
  /** Makes the caller the owner of the RAM file. */
  keepRam(): void;
  /** Milliseconds until QEMU answered: its CPUs run from then on. */
  readyMs: number;
  /** Milliseconds from the start of QEMU to the agent's hello. */
  bootMs: number;
}

/**
 * Boots a VM and waits for its agent.
 *
 * @throws FlurryError NO_SPACE, QEMU_START_FAILED, BOOT_FAILED and BOOT_TIMEOUT (with the end of the
 * guest's console), ABORTED
 */
export async function bootVm(options: BootOptions): Promise<BootedVm> {
  const { host, profile, signal } = options;
  const began = performance.now();
  const dir = host.owner.vmDir();
  await using stack = new AsyncDisposableStack();
  let ram: RamSource = { kind: "anonymous" };
  let ownsRam = true;
  if (options.ram === "shared") {
    const path = makeRamFile(host, profile.memMiB);
    stack.defer(() => {
      if (ownsRam) rmSync(path, { force: true });
    });
    ram = { kind: "shared", path };
  }
  const args = commandLine({ qemu: host.qemu, profile, ram, dir, boot: options.boot });
  const qemu = stack.use(
    await QemuProcess.start({
      ...{ host, dir, args, signal, workerPort: profile.workerPort },
      onConsoleLine: options.onConsoleLine,
    }),
  );
  const readyMs = performance.now() - began;
  const agent = stack.use(AgentClient.over(qemu.agentSocket, { stderr: () => qemu.consoleTail() }));
  await helloOf(qemu, agent, options);
  const owned = stack.move();
  return {
    host,
    profile,
    qemu,
    agent,
    ramPath: ram.kind === "shared" ? ram.path : undefined,
    keepRam: () => {
      ownsRam = false;
    },
    readyMs,
    bootMs: performance.now() - began,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

async function helloOf(qemu: QemuProcess, agent: AgentClient, options: BootOptions): Promise<void> {
  const { timeoutMs = BOOT_DEADLINE_MS, signal } = options;
  const hello = agent.hello({ timeoutMs, signal });
  const died = qemu.exited.then((info) => {
    const death = qemu.exitError(info);
    if (death.code === "NO_SPACE") throw death;
    throw bootError("BOOT_FAILED", `The guest did not boot: ${death.message}`, qemu);
  });
  try {
    await Promise.race([hello, died]);
  } catch (error) {
    if (codeOf(error) === "AGENT_TIMEOUT") {
      throw bootError(
        "BOOT_TIMEOUT",
        `The guest's agent has not answered within ${timeoutMs} ms`,
        qemu,
        error,
      );
    }
    if (codeOf(error) === "AGENT_CLOSED") await died;
    throw error;
  } finally {
    hello.catch(() => undefined);
    died.catch(() => undefined);
  }
}

function bootError(code: "BOOT_FAILED" | "BOOT_TIMEOUT", text: string, qemu: QemuProcess, cause?: unknown) {
  const console = qemu.consoleTail().slice(-2000);
  return new FlurryError(code, console ? `${text}. Its console ends with:\n${console}` : text, { cause });
}

let nextRam = 0;

/** A file in the tmpfs that is to be a guest's RAM, for QEMU's user. @throws FlurryError NO_SPACE */
export function makeRamFile(host: Host, memMiB: number): string {
  const bytes = memMiB * 1024 * 1024;
  const { bavail, bsize } = statfsSync(host.owner.shm);
  if (bavail * bsize < bytes + SHM_MARGIN_BYTES) {
    const free = Math.floor((bavail * bsize) / 1024 / 1024);
    throw new FlurryError(
      "NO_SPACE",
      `Cannot hold ${memMiB} MiB of guest memory in "${host.owner.shm}": ${free} MiB are free`,
      {
        hint: "free space there, give the guest less memory, or set FLURRY_SHM to another tmpfs",
      },
    );
  }
  const path = join(host.owner.shm, `${nextRam++}.ram`);
  const fd = openSync(path, "wx", 0o600);
  ftruncateSync(fd, bytes);
  closeSync(fd);
  if (host.user) chownSync(path, host.user.uid, host.user.gid);
  return path;
}
