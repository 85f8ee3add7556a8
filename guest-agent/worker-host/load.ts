import { readFile } from "node:fs/promises";
import { resolve } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { pathToFileURL } from "node:url";
import { ServeRegistry } from "./serve-registry.ts";
import { shimBunServe, shimDeno } from "./serve-shims.ts";
import { findHandlers, type WorkerHandlers } from "./shape.ts";

/** How long a module that has called `serve` may go on loading: it may wait for its server's end. */
const SERVING_MS = 200;
/** How long a module that has loaded without any handler may take to call `serve`, as some do later. */
const LATE_MS = 2000;

/**
 * Loads a worker's bundle and finds its handlers.
 *
 * @param entry - path of an ES module
 * @throws whatever the module throws; Error if it has no handler
 */
export async function loadWorker(entry: string): Promise<WorkerHandlers> {
  const path = resolve(entry);
  const source = await readFile(path, "utf8");
  const served = new ServeRegistry();
  shimBunServe(served);
  if (/\bDeno\s*\.\s*serve\b|\bserve\b[^;]*=\s*Deno\b/.test(source)) shimDeno(served);
  const loading: Promise<Record<string, unknown>> = import(pathToFileURL(path).href);
  const serving = served.registered.then(() => sleep(SERVING_MS)).then(() => ({}));
  const module = await Promise.race([loading, serving]);
  const found = findHandlers(module, served);
  if (found) return found;
  await Promise.race([served.registered, sleep(LATE_MS, undefined, { ref: false })]);
  const late = findHandlers(module, served);
  if (late) return late;
  const want = "export default { fetch(request, env, ctx) {} }, or { task(input, ctx) {} }";
  const have = Object.keys(module).join(", ") || "nothing";
  throw new TypeError(`The worker has no handler: it exports ${have}. It needs ${want}`);
}
