import { once } from "node:events";
import { watch } from "node:fs";
import { basename, dirname, resolve } from "node:path";
import { Command, Option } from "commander";
import { describeError, FlurryError } from "../../errors/errors.ts";
import type { OutboundHandler } from "../../guest-agent/protocol/worker/mod.ts";
import { bundleWorker, type WorkerBundle } from "../../guest-agent/worker-host/bundle.ts";
import { listen } from "../adapters/http-server.ts";
import { Serving } from "../api/mod.ts";
import { Admission, hostLimits } from "../fork/admission.ts";
import { Host } from "../vm/host.ts";
import { buildText } from "../workers/images.ts";
import { jsImage } from "../workers/js/js-image.ts";
import { openJsParent } from "../workers/js/js-parent.ts";
import { runScheduled } from "../workers/js/js-scheduled.ts";
import { forksOf, JsService } from "../workers/js/js-service.ts";
import { outboundGuard, outboundOf } from "../workers/js/outbound.ts";
import type { Isolation } from "../workers/scaling/isolation.ts";
import { stepText } from "../workers/steps.ts";
import { isolationOf } from "./deploy-spec.ts";
import { formatMs } from "./format.ts";
import { type Address, address, environment, positiveInteger } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";
import { CONFIG_OPTION, configuredWorker } from "./worker-config.ts";
import { collect } from "./worker-spec.ts";

interface DevOptions {
  listen: Address;
  isolation?: Isolation["mode"];
  env?: Record<string, string>;
  allow?: string[];
  memory?: number;
  children?: number;
  config?: string;
  watch: boolean;
  json?: boolean;
}

type Ports = ReturnType<typeof forksOf>;

/** How the worker is run: what the command line says, else its file, else the default. */
interface DevSettings {
  /** Path of the module. */
  main: string;
  isolation: Isolation;
  env: Record<string, string>;
  memory: number;
  children: number | undefined;
  /** Forks ahead of need at most. */
  ahead: number;
  /** Makes the worker's own requests. */
  outbound: OutboundHandler;
}

const EXAMPLES = `
Examples:
  flurry dev worker.ts
  flurry dev worker.ts --isolation shared --env GREETING=hello
  flurry dev worker.ts --allow api.example.com:443

worker.ts is a module as for Cloudflare Workers, Bun or Deno: \`export default { fetch }\`, a Hono app, or
one that calls the serve() of Bun or of Deno. It is loaded once, in a parent VM; with --isolation request each
request is answered by a fork of that VM of its own. When a file beside worker.ts or below changes, the
worker is loaded anew. GET /__scheduled?cron=... calls its scheduled(). Module, isolation, env, allow and
memory may also stand in flurry.jsonc.`;

/** Changes of files within this many milliseconds are one. */
const SETTLE_MS = 100;
/** With isolation by session: whoever develops is one user. */
const SESSION = "dev";
/** A GET of it calls `scheduled()`; `?cron=` says what the event says. */
const SCHEDULED_PATH = "/__scheduled";
/** Longest time of such a call, in milliseconds. */
const SCHEDULED_MS = 900_000;
/** Milliseconds that requests under way may go on when the server ends. */
const GRACE_MS = 2000;

/** `flurry dev`: answers HTTP requests with a JS worker in forked VMs, and loads it anew when it changes. */
export function devCommand(): Command {
  return new Command("dev")
    .description("Runs a JS worker in forked VMs, and loads it anew when its files change")
    .addOption(
      new Option("--listen <host:port>", "address to listen on; port 0 for any that is free")
        .argParser(address("--listen"))
        .default({ hostname: "127.0.0.1", port: 8788 }, "127.0.0.1:8788"),
    )
    .addOption(
      new Option(
        "--isolation <mode>",
        "a fresh VM for each request, or one that serves many; here all requests are one session",
      )
        .choices(["request", "session", "shared"])
        .default(undefined, "request"),
    )
    .option("--env <NAME=VALUE>", "variable for the worker's env (may be repeated)", environment)
    .option("--allow <host:port>", "where the worker's fetch() may go (may be repeated)", collect)
    .option("--memory <MiB>", "memory of a guest (default: 512)", positiveInteger("--memory"))
    .option(
      "--children <n>",
      "most VMs at a time (default: what the host can take)",
      positiveInteger("--children"),
    )
    .option(...CONFIG_OPTION)
    .option("--no-watch", "do not look for changes")
    .option("--json", "print JSON lines")
    .argument("[module]", "the worker's module (default: main of flurry.jsonc)")
    .addHelpText("after", EXAMPLES)
    .action(dev);
}

async function dev(named: string | undefined, options: DevOptions): Promise<void> {
  const output = new Output(options);
  const signal = cliSignal();
  const settings = await settingsOf(named, options);
  const module = settings.main;
  const bundle = await bundled(module, signal);
  await using host = await Host.open({ signal });
  const session = new DevSession(host, settings, output, signal);
  await using _session = session;
  await session.load(bundle);
  const server = await listen({
    ...options.listen,
    fetch: (request) => session.answer(request),
    onError: problem,
  });
  await using _server = { [Symbol.asyncDispose]: () => server.stop(GRACE_MS) };
  output.print(`${module} answers at ${server.url}`);
  output.emit({ event: "ready", url: server.url, port: server.port });
  using _watch = options.watch ? watchFiles(module, () => session.reload()) : undefined;
  if (!signal.aborted) await once(signal, "abort");
}

async function settingsOf(module: string | undefined, options: DevOptions): Promise<DevSettings> {
  const { main, config } = await configuredWorker(module, options.config);
  const configured = config.http?.isolation;
  return {
    main,
    isolation: isolationOf(options.isolation ?? configured?.mode ?? "request", configured),
    env: { ...config.env, ...options.env },
    memory: options.memory ?? config.memoryMiB ?? 512,
    children: options.children,
    ahead: Serving.parse(config.http ?? {}).ahead,
    outbound: outboundTo(options.allow ?? config.allow ?? []),
  };
}

/** Who develops is the operator, too: what is named by itself, and not by a `*`, may be on this machine. */
function outboundTo(allow: readonly string[]): OutboundHandler {
  const own = allow.filter((entry) => !entry.startsWith("*."));
  return outboundOf({ allow, guard: outboundGuard({ allow: own }) });
}

/** The worker as it is now, and what is under way to replace it. */
class DevSession implements AsyncDisposable {
  readonly #host: Host;
  readonly #settings: DevSettings;
  readonly #output: Output;
  readonly #signal: AbortSignal;
  #current: ({ bundle: WorkerBundle; service: JsService; ports: Ports } & AsyncDisposable) | undefined;
  #reloading: Promise<void> | undefined;
  #again = false;

  constructor(host: Host, settings: DevSettings, output: Output, signal: AbortSignal) {
    this.#host = host;
    this.#settings = settings;
    this.#output = output;
    this.#signal = signal;
  }

  async answer(request: Request): Promise<Response> {
    if (!this.#current) throw new FlurryError("NOT_READY", "The worker is not loaded");
    try {
      if (new URL(request.url).pathname === SCHEDULED_PATH) return await this.#callScheduled(request);
      return await this.#current.service.handle(request, { session: SESSION });
    } catch (error) {
      const { code, message } = describeError(error);
      this.#output.note(`${request.method} ${new URL(request.url).pathname}: ${message} (${code})`);
      throw error;
    }
  }

  /** Loads the worker, and takes its place when it is ready. */
  async load(bundle: WorkerBundle): Promise<void> {
    const began = performance.now();
    const { main, isolation, env, memory, children, ahead, outbound } = this.#settings;
    const name = basename(main).replace(/\.[^.]+$/, "");
    using progress = this.#output.progress("Worker");
    const image = await jsImage({
      home: this.#host.home,
      onProgress: (step) => progress.describe(buildText("js", step)),
      signal: this.#signal,
    });
    await using stack = new AsyncDisposableStack();
    const { parent } = await openJsParent({
      ...{ host: this.#host, image, name, bundle, memMiB: memory, signal: this.#signal },
      onProgress: (event) => {
        const text = stepText(event);
        if (text !== undefined) progress.describe(text);
      },
    });
    stack.use(parent);
    const limits = hostLimits(parent.profile.accel, this.#host.cores);
    const slots = children ?? limits.slots;
    const admission = new Admission({ ...limits, slots });
    // No more of them can be of use at once than there may be children.
    parent.shells.resize(slots);
    const ports = forksOf({
      ...{ parent, name, env, outbound },
      admission: admission.family(parent.descriptor.ram.bytes),
      output: {
        onLog: (vm, { level, text }) => this.#log(vm, level, text),
        onFault: (vm, fault) => this.#log(vm, "error", JSON.stringify(fault)),
      },
    });
    const service = new JsService({ ports, isolation, ahead });
    stack.use(service);
    const owned = stack.move();
    const before = this.#current;
    this.#current = { bundle, service, ports, [Symbol.asyncDispose]: () => owned.disposeAsync() };
    progress.finish(`Worker: loaded in ${formatMs(performance.now() - began)}`);
    await before?.[Symbol.asyncDispose]();
  }

  /** Calls `scheduled()`, as Cloudflare's wrangler does for this path. */
  async #callScheduled(request: Request): Promise<Response> {
    const { ports } = this.#current!;
    const cron = new URL(request.url).searchParams.get("cron") ?? "* * * * *";
    const onFailure = (vm: string, text: string) => this.#log(vm, "error", text);
    const { vm, ms, error } = await runScheduled(ports, { cron, time: Date.now() }, onFailure, {
      timeoutMs: SCHEDULED_MS,
      signal: AbortSignal.any([request.signal, this.#signal]),
    });
    if (error) throw new FlurryError("TASK_FAILED", error.message);
    return new Response(`scheduled() ran in ${vm} for ${formatMs(ms)}\n`);
  }

  /** Loads the worker anew if it has changed; once more if it changes meanwhile. */
  reload(): void {
    this.#again = true;
    this.#reloading ??= this.#reloadAll().finally(() => {
      this.#reloading = undefined;
    });
  }

  async #reloadAll(): Promise<void> {
    while (this.#again && !this.#signal.aborted) {
      this.#again = false;
      try {
        const bundle = await bundled(this.#settings.main, this.#signal);
        if (bundle.hash !== this.#current?.bundle.hash) await this.load(bundle);
      } catch (error) {
        if (this.#signal.aborted) return;
        // The one before goes on answering.
        const { code, message } = describeError(error);
        this.#output.note(`Not loaded: ${message} (${code})`);
        this.#output.emit({ event: "not-loaded", code, message });
      }
    }
  }

  #log(vm: string, level: string, text: string): void {
    this.#output.note(`[${vm}] ${text}`);
    this.#output.emit({ event: "log", vm, level, text });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#reloading;
    await this.#current?.[Symbol.asyncDispose]();
  }
}

async function bundled(module: string, signal: AbortSignal): Promise<WorkerBundle> {
  return await bundleWorker(resolve(module), { signal });
}

/** Calls when files of the module's directory, or below, have changed. */
function watchFiles(module: string, onChange: () => void): Disposable {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const watcher = watch(dirname(resolve(module)), { recursive: true }, (_event, file) => {
    if (file?.split("/").some((part) => part === "node_modules" || part.startsWith("."))) return;
    clearTimeout(timer);
    timer = setTimeout(onChange, SETTLE_MS);
  });
  return {
    [Symbol.dispose]: () => {
      clearTimeout(timer);
      watcher.close();
    },
  };
}

/** What the one who asks is told when there is no answer: RFC 9457. */
function problem(error: unknown): Response {
  const { code, message, httpStatus } = describeError(error);
  // The worker is behind this server, and has failed it.
  const status = code === "QUEUE_FULL" ? 503 : httpStatus === 500 ? 502 : httpStatus;
  const body = { type: "about:blank", title: code, status, detail: message, code };
  const headers = new Headers({ "content-type": "application/problem+json" });
  const retryAfter = error instanceof FlurryError ? error.retryAfterSeconds : undefined;
  if (retryAfter !== undefined) headers.set("retry-after", String(Math.ceil(retryAfter)));
  return new Response(JSON.stringify(body), { status, headers });
}
