import { describe, expect, test } from "bun:test";
import { setTimeout as delay } from "node:timers/promises";
import { FlurryError } from "../../errors/errors.ts";
import type { ControlAnswer, ControlEvent } from "../../memserver/process/control.ts";
import type { GivenMemory } from "../../runtime/fork/child-memory.ts";
import { LazyMemory, type LazyOptions } from "../../runtime/fork/lazy-memory.ts";
import type { Memserver } from "../../runtime/fork/memserver.ts";
import type { Shell } from "../../runtime/vm/shell.ts";
import { rejection } from "../support/agent-peer.ts";

const IMAGE = "ab".repeat(32);
const DIR = "/vm";
/** Milliseconds; what must not happen is waited for as long, and some more. */
const RECOVER_MS = 120;

type Attach = Parameters<Memserver["attach"]>[0];

type OnStatus = (event: { data: { status: string } }) => void;
type OnEvent = (event: ControlEvent) => void;
type OnDeath = (death: FlurryError) => void;

/** An attach as the memserver got it, to be answered by the test. */
interface Attaching extends PromiseWithResolvers<ControlAnswer<"attach">> {
  request: Attach;
  signal: AbortSignal | undefined;
}

/** A memserver and a QEMU of which a child hears what the test says. */
class Scene {
  readonly attaches: Attaching[] = [];
  /** Paths of `migrate-recover`. */
  readonly recovers: unknown[] = [];
  readonly detaches: [string, boolean][] = [];
  holds = 0;
  readonly memory: LazyMemory;
  readonly shell: Shell;
  readonly exit: () => void;
  #status: OnStatus | undefined;
  #event: OnEvent | undefined;
  #death: OnDeath | undefined;
  #changed = Promise.withResolvers<void>();

  constructor(options: LazyOptions = {}) {
    const { promise: exited, resolve: exit } = Promise.withResolvers<void>();
    this.exit = exit;
    const qmp = {
      on: (_name: string, handler: OnStatus) => {
        this.#status = handler;
        return { [Symbol.dispose]: () => undefined };
      },
      executeOob: async (_command: string, { uri }: { uri: string }) => {
        this.recovers.push(uri);
        this.#change();
        // As QEMU does.
        if (this.paused) return {};
        throw new FlurryError("INTERNAL", "Migrate recover can only be run when postcopy is paused.");
      },
    };
    const memserver = {
      hold: () => {
        this.holds += 1;
        return {
          [Symbol.asyncDispose]: async () => {
            this.holds -= 1;
          },
        };
      },
      watch: (_name: string, onEvent: OnEvent, onDeath: OnDeath) => {
        this.#event = onEvent;
        this.#death = onDeath;
        return { [Symbol.dispose]: () => undefined };
      },
      attach: (request: Attach, { signal }: { signal?: AbortSignal } = {}) => {
        const attaching = { request, signal, ...Promise.withResolvers<ControlAnswer<"attach">>() };
        this.attaches.push(attaching);
        signal?.addEventListener("abort", () =>
          attaching.reject(new FlurryError("ABORTED", "Aborted by the caller")),
        );
        this.#change();
        return attaching.promise;
      },
      detach: async (child: string, keep: boolean) => {
        this.detaches.push([child, keep]);
      },
    };
    this.memory = new LazyMemory(memserver as unknown as Memserver, IMAGE, {
      recoverMs: RECOVER_MS,
      ...options,
    });
    const shell = { memserverPath: `${DIR}/m`, preempt: true, qemu: { qmp, dir: DIR, exited } };
    this.shell = shell as unknown as Shell;
  }

  /** What QEMU itself is in, whatever has been heard of it. */
  paused = false;

  /** QEMU says how its migration is. */
  status(status: string): void {
    this.#status?.({ data: { status } });
  }

  /** QEMU has lost its connection, and says so. */
  pause(): void {
    this.paused = true;
    this.status("postcopy-paused");
  }

  /** The memserver tells something. */
  tell(event: ControlEvent): void {
    this.#event?.(event);
  }

  die(): void {
    this.#death?.(new FlurryError("MEMSERVER_FAILED", "The memserver (pid 7) was killed by SIGKILL"));
  }

  async until(condition: () => boolean): Promise<void> {
    while (!condition()) await this.#changed.promise;
  }

  /** A child that has been given its state. */
  async given(): Promise<GivenMemory> {
    const giving = this.memory.give(this.shell, "vm-1", undefined);
    this.attaches[0]?.resolve({ recording: false });
    const memory = await giving;
    this.status("postcopy-active");
    return memory;
  }

  /** The memserver answers the last attach; QEMU is with it. */
  recovered(): void {
    this.paused = false;
    this.attaches.at(-1)?.resolve({ recording: false });
  }

  #change(): void {
    this.#changed.resolve();
    this.#changed = Promise.withResolvers();
  }
}

/** What becomes of a child if nothing more happens: undefined when it is not lost. */
async function fate(memory: GivenMemory): Promise<FlurryError | undefined> {
  return await Promise.race([memory.lost, delay(2 * RECOVER_MS, undefined)]);
}

describe("LazyMemory", () => {
  test("has the memserver attach a child as it is told to, and lets it go again", async () => {
    const scene = new Scene();
    const memory = await scene.given();
    expect(scene.attaches.map(({ request }) => request)).toEqual([
      {
        ...{ child: "vm-1", image: IMAGE, socket: `${DIR}/m`, preempt: true, recover: false },
        background: { afterMs: expect.any(Number), bytesPerSecond: expect.any(Number) },
        ...{ workingSet: true, measure: false },
      },
    ]);
    expect(scene.holds).toBe(1);
    await memory.release(true);
    expect(scene.detaches).toEqual([["vm-1", true]]);
    expect(scene.holds).toBe(0);
    const other = new Scene({
      ...{ workingSet: false, backgroundAfterMs: 5, measure: true },
      backgroundBytesPerSecond: Number.POSITIVE_INFINITY,
    });
    await other.given();
    expect(other.attaches[0]!.request).toMatchObject({
      ...{ workingSet: false, measure: true },
      background: { afterMs: 5, bytesPerSecond: null },
    });
  });

  test("leaves nothing of a child that cannot be attached", async () => {
    const scene = new Scene();
    const giving = scene.memory.give(scene.shell, "vm-1", undefined);
    scene.attaches[0]!.reject(new FlurryError("MEMSERVER_FAILED", "Nobody waits"));
    expect((await rejection(giving)).message).toBe("Nobody waits");
    expect(scene.detaches).toEqual([["vm-1", false]]);
    expect(scene.holds).toBe(0);
  });

  test("takes a child to be lost when its pages cannot be had", async () => {
    const scene = new Scene();
    const memory = await scene.given();
    scene.tell({ event: "failed", child: "vm-1", error: { code: "PAGES_UNAVAILABLE", message: "Gone" } });
    expect(await memory.lost).toMatchObject({
      code: "PAGES_UNAVAILABLE",
      message: "its memory cannot be had: Gone",
    });
  });
});

describe("a child that is lost", () => {
  test.each(["the memserver's death", "the memserver's word", "QEMU's word"])(
    "is recovered at %s, through a path of its own each time",
    async (sign) => {
      const scene = new Scene();
      const memory = await scene.given();
      for (const round of [0, 1, 2]) {
        if (sign === "the memserver's death") scene.die();
        if (sign === "the memserver's word") scene.tell({ event: "lost", child: "vm-1", reason: "closed" });
        // Nothing can be done before it stands still.
        expect(scene.recovers).toHaveLength(round);
        scene.pause();
        await scene.until(() => scene.attaches.length === round + 2);
        const socket = `${DIR}/r${round}`;
        expect(scene.recovers.at(-1)).toBe(`unix:${socket}`);
        expect(scene.attaches.at(-1)!.request).toMatchObject({ socket, recover: true, child: "vm-1" });
        scene.status("postcopy-recover");
        scene.status("postcopy-active");
        scene.recovered();
        await delay(1);
      }
      expect(await fate(memory)).toBeUndefined();
      expect(scene.recovers).toHaveLength(3);
    },
  );

  test("goes on when the memserver's answer is heard before QEMU's", async () => {
    const scene = new Scene();
    const memory = await scene.given();
    scene.pause();
    await scene.until(() => scene.attaches.length === 2);
    scene.recovered();
    await delay(1);
    scene.status("postcopy-recover");
    scene.status("postcopy-active");
    expect(await fate(memory)).toBeUndefined();
    expect(scene.recovers).toHaveLength(1);
    // And is recovered the next time.
    scene.pause();
    await scene.until(() => scene.recovers.length === 2);
  });

  test("is recovered again when it is lost in the very moment in which it was recovered", async () => {
    const scene = new Scene();
    await scene.given();
    scene.pause();
    await scene.until(() => scene.attaches.length === 2);
    scene.status("postcopy-recover");
    scene.status("postcopy-active");
    scene.recovered();
    scene.pause();
    await scene.until(() => scene.attaches.length === 3);
    expect(scene.recovers).toEqual([`unix:${DIR}/r0`, `unix:${DIR}/r1`]);
  });

  test("is tried again when it cannot be attached", async () => {
    const scene = new Scene({ recoverMs: 10_000 });
    const memory = await scene.given();
    scene.pause();
    for (const tries of [1, 2, 3]) {
      await scene.until(() => scene.attaches.length === tries + 1);
      scene.attaches.at(-1)!.reject(new FlurryError("MEMSERVER_FAILED", "Killed"));
    }
    await scene.until(() => scene.attaches.length === 5);
    scene.recovered();
    scene.status("postcopy-active");
    expect(await fate(memory)).toBeUndefined();
  });

  test("is not tried on while it is not the one that stands still", async () => {
    const scene = new Scene({ recoverMs: 10_000 });
    await scene.given();
    scene.pause();
    await scene.until(() => scene.attaches.length === 2);
    // The connection was there, and is lost: QEMU says so in its own time.
    scene.paused = false;
    scene.status("postcopy-recover");
    scene.attaches[1]!.reject(new FlurryError("MEMSERVER_FAILED", "Killed"));
    await delay(100);
    expect(scene.recovers).toHaveLength(1);
    scene.pause();
    await scene.until(() => scene.recovers.length === 2);
  });

  test.each([
    ["cannot be attached", "Killed"],
    ["is never answered", "its QEMU did not say that it had stopped, or did not answer"],
    ["never stands still", "The memserver (pid 7) was killed by SIGKILL"],
  ])("is given up in time when it %s", async (how, reason) => {
    const scene = new Scene();
    const memory = await scene.given();
    if (how === "never stands still") scene.die();
    else scene.pause();
    const refusing = (async () => {
      for (let tries = 2; how === "cannot be attached"; tries++) {
        await scene.until(() => scene.attaches.length === tries);
        scene.attaches.at(-1)!.reject(new FlurryError("MEMSERVER_FAILED", "Killed"));
      }
    })();
    void refusing;
    const loss = await memory.lost;
    expect(loss.code).toBe("MEMSERVER_FAILED");
    expect(loss.message).toBe(`no memserver could take it on within ${RECOVER_MS} ms: ${reason}`);
  });

  test("is given up at once when QEMU cannot go on", async () => {
    const scene = new Scene({ recoverMs: 3_600_000 });
    const memory = await scene.given();
    scene.tell({ event: "lost", child: "vm-1", reason: "closed" });
    scene.status("failed");
    expect(await memory.lost).toMatchObject({
      code: "MEMSERVER_FAILED",
      message: "it lost its memserver before its CPUs ran",
    });
    expect(scene.recovers).toEqual([]);
  });

  test("is given up at once when its pages cannot be had", async () => {
    const scene = new Scene({ recoverMs: 3_600_000 });
    const memory = await scene.given();
    scene.pause();
    await scene.until(() => scene.attaches.length === 2);
    scene.attaches[1]!.reject(new FlurryError("PAGES_UNAVAILABLE", "Nobody has it"));
    expect((await memory.lost).message).toContain("Nobody has it");
  });

  test.each(["before", "after"])("needs nobody when it turns out complete %s that", async (when) => {
    const scene = new Scene();
    const memory = await scene.given();
    if (when === "before") scene.tell({ event: "complete", child: "vm-1" });
    scene.die();
    if (when === "after") scene.status("completed");
    expect(await fate(memory)).toBeUndefined();
    expect(scene.recovers).toEqual([]);
  });

  test("is left alone when it ends, and when it is let go", async () => {
    for (const end of ["exit", "release"]) {
      const scene = new Scene();
      const memory = await scene.given();
      scene.pause();
      await scene.until(() => scene.attaches.length === 2);
      if (end === "exit") scene.exit();
      else await memory.release(true);
      await delay(1);
      expect(scene.attaches[1]!.signal?.aborted).toBe(true);
      scene.pause();
      scene.die();
      expect(await fate(memory)).toBeUndefined();
      expect(scene.attaches).toHaveLength(2);
    }
  });

  test.each(["it died", "it was lost once"])("shows no working set: %s", async (how) => {
    const scene = new Scene();
    const memory = await scene.given();
    if (how === "it died") {
      scene.exit();
    } else {
      scene.pause();
      await scene.until(() => scene.attaches.length === 2);
      scene.status("postcopy-active");
      scene.recovered();
    }
    await delay(1);
    await memory.release(true);
    expect(scene.detaches).toEqual([["vm-1", false]]);
  });
});
