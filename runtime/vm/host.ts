import { cpus } from "node:os";
import { flurryHome, flurryRun, flurryShm } from "../home.ts";
import { findVmUser, type VmUser } from "./confine.ts";
import { Owner } from "./owner.ts";
import { findQemu, type QemuBinary } from "./qemu-binary.ts";

export interface HostOptions {
  /** Data directory. @default flurryHome() */
  home?: string;
  signal?: AbortSignal;
}

/** What every VM on this machine needs: QEMU, the user it runs as, the directories of this runtime. */
export class Host implements AsyncDisposable {
  readonly home: string;
  readonly qemu: QemuBinary;
  readonly user: VmUser | undefined;
  readonly owner: Owner;
  /** CPU cores that VMs share. */
  readonly cores: number;

  private constructor(home: string, qemu: QemuBinary, owner: Owner) {
    this.home = home;
    this.qemu = qemu;
    this.owner = owner;
    this.user = findVmUser();
    this.cores = cpus().length;
  }

  /**
   * Finds QEMU, and reaps what killed runtimes left.
   *
   * @throws FlurryError QEMU_NOT_FOUND
   */
  static async open(options: HostOptions = {}): Promise<Host> {
    const qemu = await findQemu(options.signal);
    const owner = await Owner.open({ run: flurryRun(), shm: flurryShm() });
    return new Host(options.home ?? flurryHome(), qemu, owner);
  }

  /** Ends every VM of this runtime and removes its files. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.owner[Symbol.asyncDispose]();
  }
}
