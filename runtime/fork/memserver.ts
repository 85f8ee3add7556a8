import { rm } from "node:fs/promises";
import { getLogger } from "@logtape/logtape";
import { FlurryError } from "../../errors/errors.ts";
import type { ControlAnswer, ControlEvent, ControlRequest } from "../../memserver/process/control.ts";
import type { Host } from "../vm/host.ts";
import { type CallOptions, MemserverProcess } from "./memserver-process.ts";

const logger = getLogger(["flurry", "memserver"]);

export interface MemserverOptions {
  host: Host;
  /** Directory with the keys of the installation. */
  keys: string;
  /** Milliseconds after which a memserver that does not answer is replaced. @default 3000 */
  silenceMs?: number | undefined;
}

/** Those who want to know what becomes of a child or an image, by its id or hash. */
type Listener = (event: ControlEvent) => void;

interface OpenedImage {
  dir: string;
  holders: readonly string[];
  temporary: boolean;
  /** Parents and children that need it. */
  holds: number;
}

export interface OpenImageOptions extends CallOptions {
  /** Addresses of those who have the image when it is not, or not all, in the directory. */
  holders?: readonly string[] | undefined;
  /** Whether the directory is removed when nobody needs the image any more. @default false */
  temporary?: boolean | undefined;
}

/** An image that is open in the memserver, until this is disposed. */
export interface HeldImage extends AsyncDisposable, ControlAnswer<"open"> {}

type Attach = Omit<Extract<ControlRequest, { op: "attach" }>, "op">;

/**
 * The memserver of this runtime: started when it is first needed, and again whenever it has ended, with
 * the images that it had open. Children that it served find the next one by themselves (`LazyMemory`).
 */
export class Memserver implements AsyncDisposable {
  readonly #options: MemserverOptions;
  readonly #images = new Map<string, OpenedImage>();
  /** Those of them that the memserver of now could not open. */
  readonly #unopened = new Set<string>();
  readonly #listeners = new Map<string, Listener>();
  readonly #deaths = new Set<(death: FlurryError) => void>();
  readonly #stop = new AbortController();
  #process: Promise<MemserverProcess> | undefined;
  #starts = 0;

  constructor(options: MemserverOptions) {
    this.#options = options;
  }

  /** How often a memserver has been started. */
  get starts(): number {
    return this.#starts;
  }

  /** Process id of the memserver that runs, or is being started. */
  async pid(): Promise<number | undefined> {
    return (await this.#process)?.pid;
  }

  /**
   * Opens an image, in the memservers that follow too, until what is returned is disposed and no child
   * holds it any more.
   *
   * @throws FlurryError IMAGE_CORRUPT, DESCRIPTOR_INVALID; PAGES_UNAVAILABLE or PEER_FAILED when no holder has
   * it; MEMSERVER_FAILED, ABORTED
   */
  async open(image: string, dir: string, options: OpenImageOptions = {}): Promise<HeldImage> {
    const { holders = [], temporary = false, signal } = options;
    const memserver = await this.#running();
    const opened = await memserver.call("open", { image, dir, holders: [...holders] }, { signal });
    const known = this.#images.get(image);
    if (!known) this.#images.set(image, { dir, holders, temporary, holds: 0 });
    const hold = this.hold(image);
    return { ...opened, [Symbol.asyncDispose]: () => hold[Symbol.asyncDispose]() };
  }

  /** Keeps an image open that is open. @throws FlurryError IMAGE_NOT_FOUND */
  hold(image: string): AsyncDisposable {
    const opened = this.#images.get(image);
    if (!opened) throw new FlurryError("IMAGE_NOT_FOUND", `Image "${image}" is not open in the memserver`);
    opened.holds += 1;
    let held = true;
    return {
      [Symbol.asyncDispose]: async () => {
        if (!held) return;
        held = false;
        opened.holds -= 1;
        if (opened.holds === 0) await this.#close(image, opened);
      },
    };
  }

  /** Says that an image that was not all there is, in this directory, which stays. */
  async moved(image: string, dir: string): Promise<void> {
    const opened = this.#images.get(image);
    if (!opened) return;
    Object.assign(opened, { dir, holders: [], temporary: false });
    await this.#ifRunning((memserver) => memserver.call("open", { image, dir, holders: [] }));
  }

  async #close(image: string, { dir, temporary }: OpenedImage): Promise<void> {
    this.#images.delete(image);
    await this.#ifRunning((memserver) => memserver.call("close", { image }));
    if (temporary) await rm(dir, { recursive: true, force: true });
  }

  /** Attaches a child. @throws as `MemserverProcess.call` */
  async attach(request: Attach, options?: CallOptions): Promise<ControlAnswer<"attach">> {
    const memserver = await this.#running();
    const { image } = request;
    if (this.#unopened.has(image)) await this.#reopen(memserver, image, options);
    return await memserver.call("attach", request, options);
  }

  async detach(child: string, keep: boolean): Promise<void> {
    await this.#ifRunning((memserver) => memserver.call("detach", { child, keep }));
  }

  async stats(child: string): Promise<ControlAnswer<"stats">> {
    return await (await this.#running()).call("stats", { child });
  }

  /** Asks other hosts for the image that was made for a key. */
  async find(key: string, holders: readonly string[], options?: CallOptions): Promise<ControlAnswer<"find">> {
    return await (await this.#running()).call("find", { key, holders: [...holders] }, options);
  }

  /** Serves the images in a directory to other hosts. Returns the port. */
  async listen(host: string, port: number, dir: string): Promise<number> {
    return (await (await this.#running()).call("listen", { host, port, dir })).port;
  }

  /** Tells of a child or an image until it is disposed; of the memserver's end too. */
  watch(name: string, onEvent: Listener, onDeath: (death: FlurryError) => void): Disposable {
    this.#listeners.set(name, onEvent);
    this.#deaths.add(onDeath);
    return {
      [Symbol.dispose]: () => {
        if (this.#listeners.get(name) === onEvent) this.#listeners.delete(name);
        this.#deaths.delete(onDeath);
      },
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#ifRunning((memserver) => memserver[Symbol.asyncDispose]());
  }

  #running(): Promise<MemserverProcess> {
    if (this.#stop.signal.aborted) {
      return Promise.reject(new FlurryError("MEMSERVER_FAILED", "The memserver has been ended"));
    }
    this.#process ??= this.#start();
    return this.#process;
  }

  async #start(): Promise<MemserverProcess> {
    const { host, keys, silenceMs = 3000 } = this.#options;
    this.#starts += 1;
    let started: MemserverProcess | undefined;
    try {
      started = await MemserverProcess.start(
        { host, keys, silenceMs, onEvent: (event) => this.#tell(event) },
        this.#stop.signal,
      );
      const memserver = started;
      for (const image of this.#images.keys()) {
        this.#unopened.add(image);
        // Children of the other images need not go for it; its own are told why when they are attached.
        await this.#reopen(memserver, image).catch((error: unknown) => {
          if (!(error instanceof FlurryError)) throw error;
        });
      }
      void memserver.exited.then((death) => this.#ended(death));
      return memserver;
    } catch (error) {
      await started?.[Symbol.asyncDispose]();
      this.#process = undefined;
      throw error;
    }
  }

  /** Opens an image in a memserver that follows another one. */
  async #reopen(memserver: MemserverProcess, image: string, options?: CallOptions): Promise<void> {
    const known = this.#images.get(image);
    if (!known) return;
    const { dir, holders } = known;
    const { complete } = await memserver.call("open", { image, dir, holders: [...holders] }, options);
    this.#unopened.delete(image);
    // The one before may have had no time to say so.
    if (complete && holders.length > 0) this.#tell({ event: "image-complete", image });
  }

  #tell(event: ControlEvent): void {
    if (event.event === "image-degraded") {
      logger.warn("What comes of image {image} is not kept any more: {reason}", { ...event });
    }
    if ("child" in event) this.#listeners.get(event.child)?.(event);
    if ("image" in event) this.#listeners.get(event.image)?.(event);
  }

  #ended(death: FlurryError): void {
    this.#process = undefined;
    if (this.#stop.signal.aborted) return;
    logger.warn("The memserver has ended: {message}", { message: death.message });
    for (const onDeath of [...this.#deaths]) onDeath(death);
  }

  /** Does something with the memserver if there is one; that it ends meanwhile is as good as done. */
  async #ifRunning(work: (memserver: MemserverProcess) => Promise<unknown>): Promise<void> {
    const running = this.#process;
    if (!running) return;
    let memserver: MemserverProcess;
    try {
      memserver = await running;
    } catch (error) {
      if (error instanceof FlurryError) return;
      throw error;
    }
    try {
      await work(memserver);
    } catch (error) {
      if (!(error instanceof FlurryError && error.code === "MEMSERVER_FAILED")) throw error;
    }
  }
}
