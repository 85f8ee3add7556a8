import { readdirSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { codeOf } from "../../../errors/errors.ts";
import { throwIfAborted } from "../../vm/qemu-process.ts";

/** Milliseconds of one look, and how much of it a process that rests may want of a processor. */
const LOOK_MS = 100;
const RESTING_SHARE = 0.1;
/** Looks in a row that must find it resting. */
const RESTING_LOOKS = 2;
/** A guest with timers of its own may never rest. */
const PATIENCE_MS = 5000;

/**
 * Waits until a VM wants next to no processor time any more, or has had its time for that. What it still had
 * to do, such as to collect garbage, each of its children would do anew, before anything else.
 *
 * @param pid - of its QEMU
 * @throws FlurryError ABORTED
 */
export async function atRest(pid: number, signal: AbortSignal | undefined): Promise<void> {
  const end = performance.now() + PATIENCE_MS;
  let before = wantedMs(pid);
  for (let looks = 0; looks < RESTING_LOOKS && performance.now() < end; ) {
    const began = performance.now();
    await sleep(LOOK_MS);
    throwIfAborted(signal);
    const now = wantedMs(pid);
    const share = (now - before) / (performance.now() - began);
    looks = share <= RESTING_SHARE ? looks + 1 : 0;
    before = now;
  }
}

/**
 * Milliseconds for which threads of a process have run, or have waited for a processor that others had:
 * on a busy machine, what gets little is not taken for what wants little. Source: Linux,
 * Documentation/scheduler/sched-stats.rst; 0 where the kernel does not count.
 */
function wantedMs(pid: number): number {
  try {
    const threads = readdirSync(`/proc/${pid}/task`);
    const stats = threads.map((thread) => readFileSync(`/proc/${pid}/task/${thread}/schedstat`, "utf8"));
    return stats.reduce((sum, text) => {
      const [ran = 0, waited = 0] = text.split(" ").map(Number);
      return sum + (ran + waited) / 1e6;
    }, 0);
  } catch (error) {
    // It is gone, or one of its threads is: whoever works with it hears of that.
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return 0;
    throw error;
  }
}
