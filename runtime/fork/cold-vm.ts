import { randomBytes } from "node:crypto";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";
import type { Host } from "../vm/host.ts";
import type { BootSource, MachineProfile } from "../vm/profile.ts";
import { type BootedVm, bootVm } from "./boot.ts";
import { explainAgentError, type Identity, privateBytesOf, type StartTimes } from "./child.ts";

export interface ColdVmOptions {
  host: Host;
  profile: MachineProfile;
  boot: BootSource;
  identity: Identity;
  signal?: AbortSignal | undefined;
}

/**
 * A VM that is booted for one task, as without Flurry. Serves for comparison: it takes part wherever
 * a child does.
 */
export class ColdVm implements AsyncDisposable {
  readonly id = `cold-${randomBytes(6).toString("hex")}`;
  readonly times: StartTimes;
  readonly memBytes: number;
  readonly #vm: BootedVm;

  private constructor(vm: BootedVm, times: StartTimes) {
    this.#vm = vm;
    this.times = times;
    this.memBytes = vm.profile.memMiB * 1024 * 1024;
  }

  /** @throws FlurryError as `bootVm` */
  static async start(options: ColdVmOptions): Promise<ColdVm> {
    const began = performance.now();
    const vm = await bootVm({ ...options, ram: "anonymous" });
    try {
      await vm.agent.identify(options.identity, { signal: options.signal });
      const answerMs = performance.now() - began;
      return new ColdVm(vm, { warm: false, shellMs: 0, runningMs: vm.readyMs, answerMs });
    } catch (error) {
      await vm[Symbol.asyncDispose]();
      throw error;
    }
  }

  get agent(): AgentClient {
    return this.#vm.agent;
  }

  privateBytes(): number {
    return privateBytesOf(this.#vm.qemu.pid);
  }

  explain(error: unknown): Promise<unknown> {
    return explainAgentError(error, this.id, this.#vm.qemu);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#vm[Symbol.asyncDispose]();
  }
}
