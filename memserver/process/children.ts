import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { ChildEnd, ChildSpec } from "../child/child-spec.ts";
import { ChildSession } from "../child/session.ts";
import type { ControlAnswer, ControlEvent, ControlRequest } from "./control.ts";
import { keepWorkingSet, type OpenImage } from "./open-images.ts";

type Attach = Extract<ControlRequest, { op: "attach" }>;

/** While a child shows its working set, the background would hide what it asks for. */
const RECORDER_DELAY = 10;

interface Attached {
  session: ChildSession;
  image: OpenImage;
  /** Its connection is over. It stays until it is detached, for what it has to show. */
  over: boolean;
}

/** The children of a memserver, by their ids. */
export class Children implements AsyncDisposable {
  readonly #children = new Map<string, Attached>();
  /** Those that are being attached: they may be detached before they are. */
  readonly #attaching = new Map<string, AbortController>();
  readonly #emit: (event: ControlEvent) => void;
  readonly #onTrouble: (error: unknown) => void;

  /** @param onTrouble - hears what is no child's failure */
  constructor(emit: (event: ControlEvent) => void, onTrouble: (error: unknown) => void) {
    this.#emit = emit;
    this.#onTrouble = onTrouble;
  }

  /**
   * Gives a child its state and its memory. Returns when all that it needs to run is on its way.
   *
   * @param find - gives the image; the child can be detached before it has
   * @throws FlurryError MEMSERVER_FAILED when it does not wait for anybody; BAD_ARGUMENT, ABORTED
   */
  async attach(request: Attach, find: () => Promise<OpenImage>): Promise<ControlAnswer<"attach">> {
    const { child, recover } = request;
    const before = this.#children.get(child);
    if (this.#attaching.has(child) || (before?.over === false && !recover)) {
      throw new FlurryError("BAD_ARGUMENT", `Child "${child}" is attached already`);
    }
    const stop = new AbortController();
    this.#attaching.set(child, stop);
    try {
      const image = await find();
      // QEMU knows better whether it has lost its connection.
      await before?.session[Symbol.asyncDispose]();
      return await this.#attach(request, image, stop.signal);
    } finally {
      this.#attaching.delete(child);
    }
  }

  async #attach(request: Attach, image: OpenImage, signal: AbortSignal): Promise<ControlAnswer<"attach">> {
    const { child } = request;
    const record = request.workingSet && !request.recover && !image.workingSet && !image.recorder;
    if (record) image.recorder = child;
    try {
      const start = request.recover ? ChildSession.recover : ChildSession.start;
      const session = await start(childSpec(request, image, record), image.source, signal);
      // Too late for it to notice.
      if (signal.aborted) await session[Symbol.asyncDispose]();
      if (signal.aborted) throw new FlurryError("ABORTED", `Child "${child}" is detached`);
      const attached: Attached = { session, image, over: false };
      this.#children.set(child, attached);
      void session.ended.then((end) => this.#ended(child, attached, end));
      return { recording: record };
    } catch (error) {
      if (record) image.recorder = undefined;
      throw error;
    }
  }

  /** Lets a child go. `keep`: what it asked for is the working set, if it was to show one. */
  async detach(child: string, keep: boolean): Promise<void> {
    this.#attaching.get(child)?.abort();
    const attached = this.#children.get(child);
    if (!attached) return;
    this.#children.delete(child);
    const { session, image } = attached;
    await session[Symbol.asyncDispose]();
    if (image.recorder !== child) return;
    image.recorder = undefined;
    const pages = session.workingSet;
    if (!keep || !pages || pages.length === 0) return;
    // It saves faults, and is no reason for anything to fail: the disk may be full.
    await keepWorkingSet(image, pages).catch(this.#onTrouble);
  }

  /** @throws FlurryError BAD_ARGUMENT when it is not attached */
  stats(child: string): ControlAnswer<"stats"> {
    const attached = this.#children.get(child);
    if (!attached) throw new FlurryError("BAD_ARGUMENT", `Child "${child}" is not attached`);
    return attached.session.stats;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const children = new Set([...this.#children.keys(), ...this.#attaching.keys()]);
    await Promise.all([...children].map((child) => this.detach(child, false)));
  }

  #ended(child: string, attached: Attached, end: ChildEnd): void {
    attached.over = true;
    if (end.kind === "complete") this.#emit({ event: "complete", child });
    if (end.kind === "lost") this.#emit({ event: "lost", child, reason: end.reason });
    if (end.kind === "failed") this.#emit({ event: "failed", child, error: failureOf(end.error) });
  }
}

/** A code and a message, for the other side. */
export function failureOf(error: unknown): { code: string; message: string } {
  const message = error instanceof Error ? error.message : String(error);
  return { code: codeOf(error) ?? "INTERNAL", message };
}

function childSpec(request: Attach, image: OpenImage, record: boolean): ChildSpec {
  const { descriptor } = image;
  const { afterMs, bytesPerSecond } = request.background;
  return {
    socket: request.socket,
    machine: descriptor.fingerprint.machine,
    block: { name: descriptor.ram.block, bytes: descriptor.ram.bytes },
    // Without the EOF, which ends a stream that is loaded at once.
    devices: descriptor.deviceState.subarray(0, -1),
    preempt: request.preempt,
    background: {
      afterMs: record ? afterMs * RECORDER_DELAY : afterMs,
      bytesPerSecond: bytesPerSecond ?? Number.POSITIVE_INFINITY,
    },
    workingSet: request.workingSet && !request.recover ? image.workingSet : undefined,
    record,
    measure: request.measure,
  };
}
