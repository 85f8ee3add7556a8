import { constants } from "node:os";

/** What the guest's console says when its worker-host has ended, before the VM goes. */
export const DEATH_NOTE = "flurry: the worker-host ended with status";

export const OUT_OF_MEMORY = "the worker ran out of memory";

/**
 * Why the worker-host of a guest has ended, in words.
 *
 * @param console - the end of the guest's console: text of the guest, which says what it likes
 * @returns undefined if the console does not tell
 */
export function deathOf(console: string): string | undefined {
  const status = new RegExp(`${DEATH_NOTE} (\\d+)`).exec(console)?.[1];
  // The kernel's own words: mm/oom_kill.c. It panics when there is nobody left to kill.
  const isOutOfMemory = /Out of memory: Killed process|System is deadlocked on memory/.test(console);
  if (isOutOfMemory && status !== "0") return OUT_OF_MEMORY;
  if (status === undefined) return undefined;
  const code = Number(status);
  // As a shell has it: above 128 is the number of a signal.
  const signal = Object.entries(constants.signals).find(([, number]) => number === code - 128)?.[0];
  return signal ? `the worker was ended by ${signal}` : `the worker ended with status ${code}`;
}
