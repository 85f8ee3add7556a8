import { connect, type Socket } from "node:net";
import { FlurryError } from "../../errors/errors.ts";
import type { Host } from "./host.ts";
import { commandLine, type MachineProfile, type RamSource } from "./profile.ts";
import { QemuProcess } from "./qemu-process.ts";

export interface ShellSpec {
  host: Host;
  profile: MachineProfile;
  /** The frozen memory image that the shell is bound to; without one, its child's pages come from a memserver. */
  image?: string | undefined;
  /** Whether pages that the guest waits for get a connection of their own. @default where QEMU can, soundly */
  preempt?: boolean | undefined;
}

/**
 * A QEMU process that waits to become a child: machine built, and whatever can be done ahead of need is done.
 * With a memory image, that is mapped and the connection for the device stream open: all that is left to
 * do is to write the stream. Without one, QEMU listens for a memserver.
 */
export class Shell implements AsyncDisposable {
  readonly qemu: QemuProcess;
  /** Milliseconds from spawn to waiting. */
  readonly startMs: number;
  /** Whether its memserver opens a second connection, for pages that the guest waits for. */
  readonly preempt: boolean;
  readonly #incoming: Socket | undefined;

  private constructor(qemu: QemuProcess, preempt: boolean, incoming: Socket | undefined, startMs: number) {
    this.qemu = qemu;
    this.preempt = preempt;
    this.#incoming = incoming;
    this.startMs = startMs;
  }

  /** @throws FlurryError as `QemuProcess.start` */
  static async start(spec: ShellSpec, signal?: AbortSignal): Promise<Shell> {
    const began = performance.now();
    const { host, profile, image, preempt = host.qemu.preempt } = spec;
    const dir = host.owner.vmDir();
    const ram: RamSource = image === undefined ? { kind: "anonymous" } : { kind: "private", path: image };
    const incoming = image === undefined ? "deferred" : "listening";
    const args = commandLine({ qemu: host.qemu, profile, ram, dir, incoming });
    const qemu = await QemuProcess.start({ host, dir, args, signal, workerPort: profile.workerPort });
    try {
      const socket = image === undefined ? await listen(qemu, preempt, signal) : await dial(`${dir}/m`);
      return new Shell(qemu, preempt, socket, performance.now() - began);
    } catch (cause) {
      await qemu[Symbol.asyncDispose]();
      throw new FlurryError(
        "QEMU_START_FAILED",
        `QEMU (pid ${qemu.pid}) takes no ${image === undefined ? "memserver" : "device stream"}`,
        { cause },
      );
    }
  }

  /** Whether it waits for a memserver, having no memory image. */
  get isLazy(): boolean {
    return this.#incoming === undefined;
  }

  /** Path of the unix socket on which it waits for a memserver. */
  get memserverPath(): string {
    return `${this.qemu.dir}/m`;
  }

  /**
   * Makes a shell with a memory image a child. Returns when the stream is handed to the kernel; the guest
   * runs at the RESUME event.
   */
  load(stream: Uint8Array): void {
    if (!this.#incoming) throw new FlurryError("INTERNAL", "A shell without a memory image takes no stream");
    this.#incoming.end(stream);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#incoming?.destroy();
    await this.qemu[Symbol.asyncDispose]();
  }
}

/** Has QEMU wait for a memserver: postcopy on, which is also when QEMU finds out whether it can have it. */
async function listen(
  qemu: QemuProcess,
  preempt: boolean,
  signal: AbortSignal | undefined,
): Promise<undefined> {
  const names = ["postcopy-ram", "events", ...(preempt ? (["postcopy-preempt"] as const) : [])] as const;
  const capabilities = names.map((capability) => ({ capability, state: true }));
  // Both at once: QEMU takes them in order.
  await Promise.all([
    qemu.qmp.execute("migrate-set-capabilities", { capabilities }, { signal }),
    qemu.qmp.execute("migrate-incoming", { uri: `unix:${qemu.dir}/m` }, { signal }),
  ]);
  return undefined;
}

function dial(path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connect(path);
    socket.once("error", reject);
    socket.once("connect", () => {
      socket.off("error", reject);
      // A QEMU that dies while it loads is noticed by its exit, with its stderr.
      socket.on("error", () => socket.destroy());
      resolve(socket);
    });
  });
}
