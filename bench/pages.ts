import type { Image } from "../guest-agent/image/mod.ts";
import type { Host } from "../runtime/vm/host.ts";
import { benchChildren, type ChildrenRow } from "./pages-children.ts";
import { benchFaults, type FaultFigures } from "./pages-faults.ts";
import { PagesParent } from "./pages-parent.ts";
import { benchStream, type StreamFigures } from "./pages-stream.ts";

export interface PagesBenchOptions {
  host: Host;
  image: Image;
  memMiB: number;
  /** MiB of the guest's memory that are filled, to be touched and streamed. */
  filledMiB: number;
  /** Pages that are touched for each figure. */
  touches: number;
  /** Whole images that are streamed, each way. */
  streams: number;
  /** Numbers of children that are started at once. */
  children: readonly number[];
  /** Children of each kind that a figure is of, at least. */
  samples: number;
  onProgress?: (stage: string) => void;
  signal?: AbortSignal;
}

/** Each figure in the unit that its type says. */
export interface PagesBenchResult {
  accel: string;
  qemu: string;
  cores: number;
  memMiB: number;
  /** Pages of the image that are no zero pages. */
  dataPages: number;
  faults: FaultFigures;
  /** MB/s. */
  streamMBps: StreamFigures;
  children: ChildrenRow[];
}

/** Measures children whose memory comes page by page, beside such whose memory is mapped. */
export async function benchPages(options: PagesBenchOptions): Promise<PagesBenchResult> {
  const { host, image, memMiB, filledMiB, onProgress, signal } = options;
  onProgress?.("opening a parent");
  await using pages = await PagesParent.open({ host, image, memMiB, filledMiB, signal });
  onProgress?.(`touching ${options.touches} pages in each kind of child`);
  const faults = await benchFaults(pages, options.touches, host.qemu.preempt, signal);
  onProgress?.("streaming whole images");
  const streamMBps = await benchStream(host, pages, options.streams, signal);
  const children = await benchChildren(pages, options.children, options.samples, signal, onProgress);
  return {
    accel: pages.mapped.profile.accel,
    qemu: host.qemu.version,
    cores: host.cores,
    memMiB,
    dataPages: pages.dataPages,
    faults,
    streamMBps,
    children,
  };
}
