import { rmSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Image } from "../guest-agent/image/mod.ts";
import type { Child } from "../runtime/fork/child.ts";
import { LazyMemory, type LazyOptions } from "../runtime/fork/lazy-memory.ts";
import { Memserver } from "../runtime/fork/memserver.ts";
import { openParent } from "../runtime/fork/open-parent.ts";
import { Parent } from "../runtime/fork/parent.ts";
import { memserverKeys } from "../runtime/home.ts";
import type { Host } from "../runtime/vm/host.ts";
import { allowUserfaultfd } from "../runtime/vm/userfaultfd.ts";
import { buildGuestProgram, FAULTS_SOURCE } from "./guest/build.ts";

const PROGRAM = "/opt/faults";
const SEED = "1";

export interface PagesParentOptions {
  host: Host;
  image: Image;
  memMiB: number;
  /** MiB of the guest's memory that a program of it holds filled, to be touched in children. */
  filledMiB: number;
  signal?: AbortSignal | undefined;
}

/** What faults in the guest cost, as its program tells. */
export interface Touched {
  count: number;
  wrong: number;
  p50ns: number;
  p99ns: number;
  maxNs: number;
  totalNs: number;
  /** Median of the same read when the page is there. */
  overheadNs: number;
}

/** A frozen parent with a program that touches its memory, and a memserver for it. */
export class PagesParent implements AsyncDisposable {
  readonly mapped: Parent;
  readonly memserver: Memserver;
  readonly image: string;
  readonly dir: string;
  /** Pages of the image that are no zero pages. */
  readonly dataPages: number;
  readonly #options: PagesParentOptions;
  readonly #resources: AsyncDisposableStack;

  private constructor(
    options: PagesParentOptions,
    mapped: Parent,
    memserver: Memserver,
    dataPages: number,
    resources: AsyncDisposableStack,
  ) {
    this.#options = options;
    this.mapped = mapped;
    this.memserver = memserver;
    this.dir = dirname(mapped.imagePath);
    this.image = this.dir.slice(this.dir.lastIndexOf("/") + 1);
    this.dataPages = dataPages;
    this.#resources = resources;
  }

  static async open(options: PagesParentOptions): Promise<PagesParent> {
    const { host, image, memMiB, filledMiB, signal } = options;
    allowUserfaultfd(host.qemu, host.user);
    const data = await buildGuestProgram(FAULTS_SOURCE, { signal });
    await using stack = new AsyncDisposableStack();
    const { parent } = await openParent({
      ...{ host, image, memMiB, signal },
      files: [{ path: PROGRAM, data, mode: 0o755 }],
      warmUp: { argv: [PROGRAM, "start", String(filledMiB), SEED] },
    });
    stack.use(parent);
    const memserver = stack.use(new Memserver({ host, keys: memserverKeys(host.home) }));
    const dir = dirname(parent.imagePath);
    // Of an earlier run, and perhaps of other tasks.
    rmSync(join(dir, "working-set"), { force: true });
    const held = stack.use(await memserver.open(dir.slice(dir.lastIndexOf("/") + 1), dir, { signal }));
    return new PagesParent(options, parent, memserver, held.dataPages, stack.move());
  }

  /** The same parent, for children that have their memory page by page. */
  lazy(lazy: LazyOptions): Parent {
    const { host } = this.#options;
    const { profile, descriptor, imagePath } = this.mapped;
    const memory = new LazyMemory(this.memserver, this.image, lazy);
    return new Parent({ host, profile, descriptor, imagePath, lazy: memory });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#resources.disposeAsync();
  }
}

/**
 * Touches pages in a child that it has not touched since it was forked.
 *
 * @throws Error when a page is not what the parent had
 */
export async function touch(
  child: Child,
  count: number,
  seed: number,
  signal?: AbortSignal,
): Promise<Touched> {
  const { code, stdout, stderr } = await child.agent.run([PROGRAM, "touch", String(count), String(seed)], {
    signal,
  });
  if (code !== 0) throw new Error(`The program in the guest failed: ${stderr}`);
  const touched: Touched = JSON.parse(stdout);
  if (touched.wrong > 0) throw new Error(`${touched.wrong} of ${count} pages are wrong`);
  return touched;
}
