import { setTimeout as delay } from "node:timers/promises";
import type { BackgroundOptions, ChildSpec } from "../../memserver/child/child-spec.ts";
import { ChildSession } from "../../memserver/child/session.ts";
import { FlatImage } from "../../memserver/image/flat-image.ts";
import type { PageSource } from "../../memserver/image/page-source.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import type { Host } from "../../runtime/vm/host.ts";
import { commandLine } from "../../runtime/vm/profile.ts";
import { QemuProcess } from "../../runtime/vm/qemu-process.ts";
import type { OwnImage } from "./memserver-lazy.ts";
import { TEST_MS } from "./vm.ts";

export interface PausedChildOptions {
  host: Host;
  parent: Parent;
  image: OwnImage;
  /** Whether it has a second connection. */
  preempt: boolean;
  /** @default at once, as fast as it takes it */
  background?: BackgroundOptions | undefined;
  workingSet?: Uint32Array | undefined;
  measure?: boolean | undefined;
  /** Where its pages come from; disposed of by the caller. @default the parent's file */
  source?: PageSource | undefined;
}

/** A child whose CPUs never run: nothing but the memserver, which is this process, changes its memory. */
export class PausedChild implements AsyncDisposable {
  /** How often its connection was broken. */
  breaks = 0;
  session: ChildSession;
  readonly qemu: QemuProcess;
  readonly #spec: ChildSpec;
  readonly #source: PageSource;
  readonly #dataPages: number;
  #sent = 0;

  private constructor(qemu: QemuProcess, spec: ChildSpec, source: PageSource, session: ChildSession) {
    this.qemu = qemu;
    this.#spec = spec;
    this.#source = source;
    this.session = session;
    const pages = Array.from({ length: source.pages }, (_, page) => page);
    this.#dataPages = pages.filter((page) => !source.isZero(page)).length;
  }

  static async start(options: PausedChildOptions): Promise<PausedChild> {
    const { host, parent, image, preempt } = options;
    const { profile, descriptor } = parent;
    const dir = host.owner.vmDir();
    const ram = { kind: "anonymous" } as const;
    const args = commandLine({ qemu: host.qemu, profile, ram, dir, incoming: "deferred", paused: true });
    await using stack = new AsyncDisposableStack();
    const source = options.source ?? stack.use(new FlatImage(parent.imagePath, image.table));
    const qemu = stack.use(await QemuProcess.start({ host, dir, args }));
    const names = ["postcopy-ram", "events", ...(preempt ? (["postcopy-preempt"] as const) : [])] as const;
    const capabilities = names.map((capability) => ({ capability, state: true }));
    await qemu.qmp.execute("migrate-set-capabilities", { capabilities });
    await qemu.qmp.execute("migrate-incoming", { uri: `unix:${dir}/m` });
    const spec: ChildSpec = {
      socket: `${dir}/m`,
      machine: descriptor.fingerprint.machine,
      block: { name: descriptor.ram.block, bytes: descriptor.ram.bytes },
      devices: descriptor.deviceState.subarray(0, -1),
      preempt,
      background: options.background ?? { afterMs: 0, bytesPerSecond: Number.POSITIVE_INFINITY },
      workingSet: options.workingSet,
      measure: options.measure,
    };
    const child = new PausedChild(qemu, spec, source, await ChildSession.start(spec, source));
    child.#resources = stack.move();
    return child;
  }

  #resources: AsyncDisposableStack | undefined;

  get pid(): number {
    return this.qemu.pid;
  }

  /** Breaks its connection when it has been sent this share of its memory, and goes on with another one. */
  async breakAt(share: number): Promise<void> {
    const { qmp, dir } = this.qemu;
    // Before it has all of its state it cannot be recovered.
    while ((await qmp.execute("query-status")).status === "inmigrate") await delay(1);
    const sent = () => this.#sent + this.session.stats.requests + this.session.stats.pushed;
    while (sent() < share * this.#dataPages) await delay(0);
    using paused = qmp.expect("MIGRATION", {
      timeoutMs: TEST_MS,
      filter: ({ data }) => data.status === "postcopy-paused",
    });
    await this.session[Symbol.asyncDispose]();
    this.#sent = sent();
    await paused;
    const socket = `${dir}/r${this.breaks++}`;
    await qmp.executeOob("migrate-recover", { uri: `unix:${socket}` });
    this.session = await ChildSession.recover({ ...this.#spec, socket, workingSet: undefined }, this.#source);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.session[Symbol.asyncDispose]();
    await this.#resources?.disposeAsync();
  }
}
