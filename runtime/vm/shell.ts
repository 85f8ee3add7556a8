import { connect, type Socket } from "node:net";
import { FlurryError } from "../../errors/errors.ts";
import type { Host } from "./host.ts";
import { commandLine, type MachineProfile, type RamSource } from "./profile.ts";
import { QemuProcess } from "./qemu-process.ts";

export interface ShellSpec {
  host: Host;
  profile: MachineProfile;
  /** The frozen memory image that the shell is bound to. */
  image: string;
}

/**
 * A QEMU process that waits to become a child: machine built, memory image mapped, the connection
 * for its device stream open. All that is left to do is to write the stream.
 */
export class Shell implements AsyncDisposable {
  readonly qemu: QemuProcess;
  /** Milliseconds from spawn to waiting. */
  readonly startMs: number;
  readonly #incoming: Socket;

  private constructor(qemu: QemuProcess, incoming: Socket, startMs: number) {
    this.qemu = qemu;
    this.#incoming = incoming;
    this.startMs = startMs;
  }

  /** @throws FlurryError as `QemuProcess.start` */
  static async start(spec: ShellSpec, signal?: AbortSignal): Promise<Shell> {
    const began = performance.now();
    const { host, profile } = spec;
    const dir = host.owner.vmDir();
    const ram: RamSource = { kind: "private", path: spec.image };
    const args = commandLine({ qemu: host.qemu, profile, ram, dir, incoming: true });
    const qemu = await QemuProcess.start({ host, dir, args, signal });
    try {
      const incoming = await dial(`${dir}/m`);
      return new Shell(qemu, incoming, performance.now() - began);
    } catch (cause) {
      await qemu[Symbol.asyncDispose]();
      throw new FlurryError("QEMU_START_FAILED", `QEMU (pid ${qemu.pid}) takes no device stream`, { cause });
    }
  }

  /**
   * Makes the shell a child. Returns when the stream is handed to the kernel; the guest runs at the
   * RESUME event.
   */
  load(stream: Uint8Array): void {
    this.#incoming.end(stream);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#incoming.destroy();
    await this.qemu[Symbol.asyncDispose]();
  }
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
