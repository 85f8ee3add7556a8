/** Fills a store, prints "filled", and holds it open until it is killed. Argument: the data directory. */

import { openStore } from "../../runtime/store/open.ts";
import { fillStore } from "./store-filled.ts";

const store = await openStore({ dir: process.argv[2]! });
await fillStore(store);
process.stdout.write("filled\n");
// Something that keeps the process alive, and the store with it.
setInterval(() => store, 1_000_000);
