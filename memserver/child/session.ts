import type { Socket } from "node:net";
import { FlurryError } from "../../errors/errors.ts";
import type { PageSource } from "../image/page-source.ts";
import { invalid, PAGE_BYTES } from "../stream/format.ts";
import { type ReturnMessage, ReturnPathReader } from "../stream/return-path.ts";
import { StreamWriter } from "../stream/writer.ts";
import type { ChildEnd, ChildSpec, ChildStats } from "./child-spec.ts";
import { dial } from "./dial.ts";
import { PageChannel } from "./page-channel.ts";
import { PageLedger } from "./page-ledger.ts";
import { PagePusher } from "./page-pusher.ts";
import { Samples } from "./samples.ts";
import { WorkingSetRecord } from "./working-set.ts";

/** Any number serves: QEMU takes the one it is told. */
const SECTION_ID = 1;
/** The ping in the package: its answer says that the CPUs are about to run. */
const RUN_PING = 1;
/** The first ping that measures. */
const FIRST_MEASURE_PING = 2;
/** Bytes of the return path that are dealt with before it is seen whether the child takes its answers. */
const READ_BYTES = 1024;
/** Pages of ROMs and tables that a child may ask for; a machine of ours has not 200 of them. */
const MAX_OTHER_PAGES = 4096;

/**
 * Plays the source of QEMU's postcopy migration to one child over one connection: its device state, the
 * pages that its guest waits for, and the rest in the background, until it has all.
 *
 * @see docs/memserver.md, and QEMU's docs/devel/migration/postcopy.rst
 */
export class ChildSession implements AsyncDisposable {
  /** Resolves with how it ended; never rejects. */
  readonly ended: Promise<ChildEnd>;
  readonly #spec: ChildSpec;
  readonly #source: PageSource;
  readonly #main: Socket;
  readonly #ledger: PageLedger;
  readonly #pushes: PagePusher;
  readonly #bulk: PageChannel;
  readonly #stop = new AbortController();
  readonly #resolveEnded: (end: ChildEnd) => void;
  readonly #service = new Samples();
  readonly #placed = new Samples();
  readonly #record: WorkingSetRecord | undefined;
  /** Pages of other blocks that were sent. */
  readonly #others = new Set<string>();
  #urgentSocket: Socket | undefined;
  #urgent: PageChannel;
  #end: ChildEnd | undefined;
  #finished = false;
  /** Resolves when the child's CPUs run, or are just about to. */
  readonly #running = Promise.withResolvers<void>();
  #ran = false;
  #arrivedAt = 0;
  #measuring: { ping: number; since: number } | undefined;
  #nextPing = FIRST_MEASURE_PING;
  #bitmap: PromiseWithResolvers<Uint8Array> | undefined;
  #resumed: PromiseWithResolvers<void> | undefined;
  #requests = 0;
  #requestsBeforeRun = 0;

  private constructor(spec: ChildSpec, source: PageSource, main: Socket) {
    this.#spec = spec;
    this.#source = source;
    this.#main = main;
    this.#ledger = new PageLedger(source);
    this.#bulk = new PageChannel(main, source, spec.block.name);
    this.#urgent = this.#bulk;
    this.#pushes = new PagePusher({
      source,
      ledger: this.#ledger,
      channel: this.#bulk,
      signal: this.#stop.signal,
    });
    if (spec.record) this.#record = new WorkingSetRecord(source.pages);
    const { promise, resolve } = Promise.withResolvers<ChildEnd>();
    this.ended = promise;
    this.#resolveEnded = resolve;
    this.#watch(main);
    const reader = new ReturnPathReader([spec.block], (message) => this.#receive(message), {
      unlisted: true,
    });
    main.on("data", (chunk: Uint8Array) => this.#read(reader, chunk));
  }

  /**
   * Starts a child whose QEMU waits for it. Returns when all that it needs to run is on its way.
   *
   * @throws FlurryError MEMSERVER_FAILED when nobody waits on the socket, ABORTED
   */
  static async start(spec: ChildSpec, source: PageSource, signal?: AbortSignal): Promise<ChildSession> {
    const main = await dial(spec.socket, signal);
    const session = new ChildSession(spec, source, main);
    try {
      if (spec.preempt) await session.#openUrgent(signal);
      session.#begin();
      return session;
    } catch (error) {
      await session[Symbol.asyncDispose]();
      throw error;
    }
  }

  /**
   * Goes on with a child that has lost its memserver, or its connection, and waits for another one.
   *
   * @throws FlurryError MEMSERVER_FAILED when nobody waits on the socket or the child does not take part, ABORTED
   */
  static async recover(spec: ChildSpec, source: PageSource, signal?: AbortSignal): Promise<ChildSession> {
    const main = await dial(spec.socket, signal);
    const session = new ChildSession(spec, source, main);
    try {
      await session.#resume(signal);
      return session;
    } catch (error) {
      await session[Symbol.asyncDispose]();
      throw error;
    }
  }

  get stats(): ChildStats {
    return {
      requests: this.#requests,
      requestsBeforeRun: this.#requestsBeforeRun,
      pushed: this.#pushes.pages,
      bytes: this.#main.bytesWritten + (this.#urgentSocket?.bytesWritten ?? 0),
      serviceUs: this.#service.values,
      placedUs: this.#placed.values,
    };
  }

  /** What the child has asked for so far, if a record is kept. */
  get workingSet(): Uint32Array | undefined {
    return this.#record?.pages;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#finish({ kind: "closed" });
  }

  #begin(): void {
    if (this.#end) return;
    const { machine, block, devices } = this.#spec;
    const writer = new StreamWriter()
      .header()
      .configuration(machine)
      .openReturnPath()
      .advise()
      .blocks(SECTION_ID, [block])
      // Without any discard QEMU (7.2 to 10.0) dead-locks at LISTEN.
      .discard(block.name, [{ start: 0, length: PAGE_BYTES }])
      .package((inner) => inner.listen().devices(devices).ping(RUN_PING).run())
      .part(SECTION_ID);
    this.#bulk.send(writer.take());
    void this.#push(this.#spec.workingSet);
  }

  async #resume(signal: AbortSignal | undefined): Promise<void> {
    const { block, preempt } = this.#spec;
    // The guest runs, or did until it missed a page.
    this.#run();
    const onAbort = () => this.#finish({ kind: "closed" });
    signal?.addEventListener("abort", onAbort, { once: true });
    try {
      this.#ledger.received(await this.#askBitmap(new StreamWriter().recvBitmap(block.name)));
      // Only now: QEMU takes the first connection for the main one.
      if (preempt) await this.#openUrgent(signal);
      this.#resumed = Promise.withResolvers<void>();
      this.#bulk.send(new StreamWriter().resume().part(SECTION_ID).take());
      await Promise.race([this.#resumed.promise, this.#failure()]);
    } finally {
      signal?.removeEventListener("abort", onAbort);
    }
    void this.#push(undefined);
  }

  async #openUrgent(signal: AbortSignal | undefined): Promise<void> {
    const socket = await dial(this.#spec.socket, signal);
    this.#urgentSocket = socket;
    // What has ended meanwhile has closed only the other one.
    if (this.#end) socket.destroy();
    this.#urgent = new PageChannel(socket, this.#source, this.#spec.block.name);
    this.#watch(socket);
    // Nothing comes this way, but its end.
    socket.resume();
  }

  async #push(first: Uint32Array | undefined): Promise<void> {
    try {
      if (first) await this.#pushes.pushList(first);
      await this.#pushes.pushRest(this.#spec.background);
      // Until then QEMU's main loop may ask for zero pages, and nothing comes of the end while it waits.
      await Promise.race([this.#running.promise, this.ended]);
      if (this.#end) return;
      this.#finished = true;
      this.#bulk.send(
        new StreamWriter().sectionEnd(SECTION_ID).end(SECTION_ID).sectionEnd(SECTION_ID).eof().take(),
      );
    } catch (error) {
      this.#fail(error);
    }
  }

  async #askBitmap(command: StreamWriter): Promise<Uint8Array> {
    this.#bitmap = Promise.withResolvers<Uint8Array>();
    this.#bulk.send(command.take());
    return await Promise.race([this.#bitmap.promise, this.#failure()]);
  }

  /** Rejects when the session ends. */
  async #failure(): Promise<never> {
    const end = await this.ended;
    if (end.kind === "failed") throw end.error;
    const reason = end.kind === "lost" ? end.reason : "it was given up";
    throw new FlurryError("MEMSERVER_FAILED", `The connection to a child ended: ${reason}`);
  }

  #read(reader: ReturnPathReader, chunk: Uint8Array): void {
    this.#arrivedAt = performance.now();
    try {
      for (let at = 0; at < chunk.length && !this.#end; at += READ_BYTES) {
        reader.push(chunk.subarray(at, at + READ_BYTES));
        if (!this.#urgent.full) continue;
        this.#readLater(chunk.subarray(at + READ_BYTES));
        return;
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  /** It asks for more than it takes, and the answers would pile up here: what it says next can wait. */
  #readLater(rest: Uint8Array): void {
    this.#main.pause();
    if (rest.length > 0) this.#main.unshift(rest);
    void this.#urgent.drained.then(() => this.#main.resume());
  }

  #receive(message: ReturnMessage): void {
    switch (message.kind) {
      case "request":
        // It has pages of this size only, and asks for each by itself.
        if (message.length !== PAGE_BYTES) throw invalid(message.at, `request of ${message.length} bytes`);
        this.#serve(message);
        return;
      case "pong":
        this.#pong(message.value);
        return;
      case "recv-bitmap":
        // The reader's bytes are its own again after this call.
        this.#bitmap?.resolve(Uint8Array.from(message.bits));
        return;
      case "resume-ack":
        this.#resumed?.resolve();
        return;
      case "shut":
        if (message.status === 0 && this.#finished) this.#finish({ kind: "complete" });
        else this.#finish({ kind: "lost", reason: `QEMU ended it with status ${message.status}` });
    }
  }

  #serve({ block, start, at }: Extract<ReturnMessage, { kind: "request" }>): void {
    // At the end a child with a second connection waits for what it has asked for there; all others go on.
    if (this.#end || (this.#finished && !this.#urgentSocket)) return;
    if (block === this.#spec.block.name) this.#servePage(start / PAGE_BYTES);
    else this.#serveOther(block, start, at);
  }

  #servePage(page: number): void {
    if (!this.#ledger.isOpen(page)) return;
    this.#requests += 1;
    if (!this.#ran) this.#requestsBeforeRun += 1;
    this.#record?.add(page);
    if (this.#source.isZero(page)) {
      this.#urgent.sendZero(this.#spec.block.name, page * PAGE_BYTES);
    } else if (!this.#urgent.sendPage(page)) {
      this.#ledger.await(page);
      void this.#serveLater(page);
      return;
    }
    this.#ledger.sent(page);
    this.#service.add((performance.now() - this.#arrivedAt) * 1000);
    if (this.#spec.measure && !this.#measuring && !this.#finished) this.#measure();
  }

  async #serveLater(page: number): Promise<void> {
    try {
      await this.#source.fetch(page, 1, { urgent: true, signal: this.#stop.signal });
      if (this.#end) return;
      if (!this.#urgent.sendPage(page))
        throw new FlurryError("INTERNAL", `Page ${page} was fetched and is not there`);
      this.#ledger.sent(page);
      this.#pushes.wake();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Pages of ROMs and tables, which are of no use to a machine that runs: zeros, as in every child. */
  #serveOther(block: string, offset: number, at: number): void {
    const key = `${block} ${offset}`;
    if (this.#others.has(key)) return;
    this.#others.add(key);
    if (this.#others.size > MAX_OTHER_PAGES) throw invalid(at, "requests for more than a machine has");
    this.#urgent.sendZero(block, offset);
  }

  #run(): void {
    this.#ran = true;
    this.#running.resolve();
  }

  #measure(): void {
    const ping = this.#nextPing++;
    this.#measuring = { ping, since: this.#arrivedAt };
    this.#bulk.send(new StreamWriter().sectionEnd(SECTION_ID).ping(ping).part(SECTION_ID).take());
  }

  #pong(value: number): void {
    if (value === RUN_PING) this.#run();
    if (value !== this.#measuring?.ping) return;
    this.#placed.add((performance.now() - this.#measuring.since) * 1000);
    this.#measuring = undefined;
  }

  #watch(socket: Socket): void {
    const lose = (reason: string) => {
      // QEMU closes the second connection at the end, before it says so on the first one.
      if (socket === this.#main || !this.#finished) this.#finish({ kind: "lost", reason });
    };
    socket.on("error", (error) => lose(error.message));
    socket.on("end", () => socket === this.#main && lose("QEMU closed it"));
    socket.on("close", () => lose("it was closed"));
  }

  #fail(cause: unknown): void {
    const error = cause instanceof Error ? cause : new Error(String(cause));
    this.#finish({ kind: "failed", error });
  }

  #finish(end: ChildEnd): void {
    if (this.#end) return;
    this.#end = end;
    this.#stop.abort();
    this.#main.destroy();
    this.#urgentSocket?.destroy();
    this.#resolveEnded(end);
  }
}
