import type { LazyOptions } from "../runtime/fork/lazy-memory.ts";
import type { Parent } from "../runtime/fork/parent.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import { type PagesParent, type Touched, touch } from "./pages-parent.ts";

/** Microseconds. */
export interface GuestFaults {
  p50: number;
  p99: number;
  max: number;
  /** Median of the same read when the page is there. */
  present: number;
}

export interface FaultFigures {
  /** From a request's arrival at the memserver to the page's being written to QEMU, microseconds. */
  serviceUs: Distribution;
  /** From a request's arrival at the memserver to QEMU's word that the page is in place, microseconds. */
  placedUs: Distribution;
  /** As the guest feels it: the read of a word, in microseconds. */
  guestUs: {
    /** Of a child whose memory is mapped. */
    mapped: GuestFaults;
    /** Of a lazy child, with one connection, and with a second one for what the guest waits for. */
    lazy: GuestFaults;
    lazyPreempt: GuestFaults;
    /** The same while the rest is pushed to it, 100 MB a second: some pages are there before they are read. */
    pushed: GuestFaults;
    pushedPreempt: GuestFaults;
  };
}

const NEVER = 1e9;
const PUSH_BYTES_PER_SECOND = 100_000_000;
const QUIET: LazyOptions = { workingSet: false, backgroundAfterMs: NEVER };

/** Measures faults, `count` pages at a time, in children of their own. */
export async function benchFaults(
  pages: PagesParent,
  count: number,
  preempt: boolean,
  signal?: AbortSignal,
): Promise<FaultFigures> {
  const mapped = await touchIn(pages.mapped, count, signal);
  await using single = pages.lazy({ ...QUIET, preempt: false });
  const lazy = await touchIn(single, count, signal);
  // In a child of its own: to be told when pages are in their place takes time too.
  await using told = pages.lazy({ ...QUIET, preempt: false, measure: true });
  const { serviceUs, placedUs } = await measured(pages, told, count, signal);
  await using double = pages.lazy({ ...QUIET, preempt });
  const lazyPreempt = await touchIn(double, count, signal);
  const full: LazyOptions = {
    workingSet: false,
    backgroundAfterMs: 0,
    backgroundBytesPerSecond: PUSH_BYTES_PER_SECOND,
  };
  await using pushing = pages.lazy({ ...full, preempt: false });
  const pushed = await touchIn(pushing, count, signal);
  await using pushingDouble = pages.lazy({ ...full, preempt });
  const pushedPreempt = await touchIn(pushingDouble, count, signal);
  return { serviceUs, placedUs, guestUs: { mapped, lazy, lazyPreempt, pushed, pushedPreempt } };
}

async function touchIn(parent: Parent, count: number, signal: AbortSignal | undefined): Promise<GuestFaults> {
  await using child = await parent.fork({ identity: { index: 0, hostname: "touch" }, signal });
  return guestFaults(await touch(child, count, 1, signal));
}

async function measured(pages: PagesParent, parent: Parent, count: number, signal: AbortSignal | undefined) {
  await using child = await parent.fork({ identity: { index: 0, hostname: "touch" }, signal });
  await touch(child, count, 1, signal);
  const { serviceUs, placedUs } = await pages.memserver.stats(child.id);
  return { serviceUs: distributionOf(serviceUs), placedUs: distributionOf(placedUs) };
}

function guestFaults({ p50ns, p99ns, maxNs, overheadNs }: Touched): GuestFaults {
  return { p50: p50ns / 1000, p99: p99ns / 1000, max: maxNs / 1000, present: overheadNs / 1000 };
}
