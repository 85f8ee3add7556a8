import { openStore } from "../../runtime/store/open.ts";
import { jobStoreConformance } from "../support/store-conformance-jobs.ts";
import { queueConformance } from "../support/store-conformance-queue.ts";
import { inDirectory } from "../support/store-port.ts";

/** The SQLite of the runtime that runs this test: Deno, in the layer that is called after it. */
const open = inDirectory(async (dir, clock, stack) => stack.use(await openStore({ dir, clock })));

jobStoreConformance("SQLite", open);
queueConformance("SQLite", open);
