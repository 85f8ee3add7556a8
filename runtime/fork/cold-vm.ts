import { randomBytes } from "node:crypto";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";
import { systemClock } from "../clock.ts";
import type { Host } from "../vm/host.ts";
import type { BootSource, MachineProfile } from "../vm/profile.ts";
import { type BootedVm, bootVm } from "./boot.ts";
import { explainAgentError, privateBytesOf, type StartTimes } from "./child.ts";
import { checkReceipt, Draws, type Identity, newIdentity } from "./identity.ts";

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
  readonly id: string;
  readonly times: StartTimes;
  readonly memBytes: number;
  readonly #vm: BootedVm;

  private constructor(id: string, vm: BootedVm, times: StartTimes) {
    this.id = id;
    this.#vm = vm;
    this.times = times;
    this.memBytes = vm.profile.memMiB * 1024 * 1024;
  }

  /** @throws FlurryError as `bootVm`; CHILD_UNPROVEN */
  static async start(options: ColdVmOptions): Promise<ColdVm> {
    const began = performance.now();
    const vm = await bootVm({ ...options, ram: "anonymous" });
    try {
      const id = `cold-${randomBytes(6).toString("hex")}`;
      const sent = newIdentity(id, options.identity, systemClock);
      const sentAt = performance.now();
      const read = await vm.agent.identify(sent, { signal: options.signal });
      checkReceipt(read, {
        sent,
        elapsedMs: performance.now() - sentAt,
        hooks: 0,
        draws: new Draws(),
        evident: new Set(),
      });
      const answerMs = performance.now() - began;
      return new ColdVm(id, vm, { warm: false, shellMs: 0, runningMs: vm.readyMs, answerMs });
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
