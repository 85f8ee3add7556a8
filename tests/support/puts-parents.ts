/**
 * Puts a row of parents, the same ones as every other process that runs this. Arguments: data directory,
 * directory of its own, the time (ms since 1970) to begin at, number of parents.
 */

import { ParentStore } from "../../runtime/fork/parent-store.ts";
import { Host } from "../../runtime/vm/host.ts";
import { madeUpFrozenVm } from "./frozen.ts";

const [home, directory, beginAt, count] = process.argv.slice(2) as [string, string, string, string];
await using host = await Host.open({ home });
const store = new ParentStore(host);
await new Promise((resolve) => setTimeout(resolve, Number(beginAt) - Date.now()));
for (let number = 0; number < Number(count); number++) {
  const frozen = madeUpFrozenVm(directory, `parent-${number}`, Buffer.alloc(300_000, number + 1));
  const { hash } = await store.put(`key-${number}`, frozen);
  process.stdout.write(`${hash}\n`);
}
process.stdout.write("done\n");
