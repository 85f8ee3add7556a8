import { setTimeout as wait } from "node:timers/promises";
import { codeOf } from "../../errors/errors.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import type { Dice } from "./dice.ts";
import { type ChannelCutter, canCutChannels, runningChildren } from "./workers-children.ts";

/**
 * - `child`: the process of a child that runs is killed
 * - `vm`: that of any VM, which may wait to become a child, or be just about to
 * - `channel`: the channel of a child's agent is cut; where that is not allowed, as `child`
 */
export type Strike = "child" | "vm" | "channel";

/** Strikes VMs of a gateway from outside, each once. */
export class Strikes {
  readonly #run: string;
  readonly #dice: Dice;
  readonly #cutter: ChannelCutter;
  readonly #struck = new Set<string>();

  /** @param options.run - `$FLURRY_RUN` of the gateway */
  constructor(options: { run: string; dice: Dice; cutter: ChannelCutter }) {
    this.#run = options.run;
    this.#dice = options.dice;
    this.#cutter = options.cutter;
  }

  /** Looks for a victim until one is struck: those that are found may be gone at once. Returns what was done. */
  async strike(how: Strike): Promise<string> {
    for (;;) {
      const victims = this.#victims(how).filter(({ name }) => !this.#struck.has(name));
      const victim = victims.length > 0 ? this.#dice.pick(victims) : undefined;
      if (victim && (await this.#hit(how, victim))) {
        this.#struck.add(victim.name);
        return `${how === "channel" ? "the channel" : "the process"} of ${victim.name} was lost`;
      }
      // Nothing tells another process that there is a child.
      await wait(this.#dice.int(1, 20));
    }
  }

  #victims(how: Strike) {
    if (how !== "vm") {
      return runningChildren(this.#run).map((child) => ({
        ...child,
        name: `child ${child.pid} (${child.dir})`,
      }));
    }
    return processesOf(this.#run).map((pid) => ({ pid, dir: "", name: `VM ${pid}` }));
  }

  /** False when it had ended by itself. */
  async #hit(how: Strike, victim: { pid: number; dir: string }): Promise<boolean> {
    const cuts = how === "channel" && canCutChannels;
    try {
      if (cuts) await this.#cutter.cut(victim);
      else process.kill(victim.pid, "SIGKILL");
      return true;
    } catch (error) {
      if (cuts || codeOf(error) === "ESRCH") return false;
      throw error;
    }
  }
}
