import { setTimeout as delay } from "node:timers/promises";
import { openDescriptors } from "./vm.ts";

/** Times that are looked again: the pipes of a process are closed some turns after its end. */
const LOOKS = 200;

/** What this process has open when it is as before, or when it does not come to that. */
export async function descriptorsAfter(before: readonly string[]): Promise<string[]> {
  for (let look = 0; look < LOOKS; look++) {
    const now = openDescriptors();
    if (now.join() === before.join()) return now;
    await delay(10);
  }
  return openDescriptors();
}

/** Has another program be run in place of this one's runtime. */
export function execPath(path: string): Disposable {
  const own = process.execPath;
  process.execPath = path;
  return {
    [Symbol.dispose]: () => {
      process.execPath = own;
    },
  };
}
