import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import type { ModuleSpec } from "../../runtime/api/mod.ts";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import { familyOf } from "../../runtime/jobs/family.ts";
import {
  JsServices,
  type ServedVersion,
  type ServiceFamilies,
} from "../../runtime/workers/js/js-services.ts";
import { outboundGuard } from "../../runtime/workers/js/outbound.ts";
import { rejection } from "../support/agent-peer.ts";
import { turn } from "../support/workers-scaling-time.ts";

/** Families whose parents are made when the test says so, on a host without room for a child. */
class SlowFamilies implements ServiceFamilies {
  readonly cores = 2;
  readonly isRoomWanted = false;
  readonly #made = new Map<string, PromiseWithResolvers<void>>();

  parentOf(version: ServedVersion): PromiseWithResolvers<void> {
    const family = familyOf(version.spec);
    const parent = this.#made.get(family) ?? Promise.withResolvers<void>();
    this.#made.set(family, parent);
    return parent;
  }

  async prepare(family: string): Promise<void> {
    const parent = this.#made.get(family) ?? Promise.withResolvers<void>();
    this.#made.set(family, parent);
    await parent.promise;
  }

  admit(_family: string, signal: AbortSignal): Promise<never> {
    return new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  }

  admitAhead(): undefined {
    return undefined;
  }

  hold(): Promise<never> {
    return Promise.reject(new Error("There is no room, and yet something is forked"));
  }

  fork(): Promise<never> {
    return this.hold();
  }

  measured(): Disposable {
    return { [Symbol.dispose]: () => undefined };
  }

  onWaiting(): Disposable {
    return this.measured();
  }
}

function version(number: number): ServedVersion {
  const code = `export default { fetch: () => new Response("${number}") }`;
  const spec = WorkerSpec.parse({ module: { code } }) as ModuleSpec;
  return { name: "shop", version: number, spec, secrets: async () => ({}) };
}

/** Services, and a way to ask for a version; what becomes of requests is not looked at, as there is no room. */
function open() {
  const families = new SlowFamilies();
  const services = new JsServices(families, outboundGuard({ allow: [] }));
  const ask = (worker: ServedVersion, signal?: AbortSignal): Promise<unknown> =>
    rejection(services.handle(worker, new Request("http://shop.localhost/", { signal: signal ?? null })));
  const running = () => services.stats().map((one) => one.version);
  return { families, services, ask, running };
}

describe("JsServices", () => {
  test("has the version run that was asked for last, in whatever order they are ready", async () => {
    const { families, services, ask, running } = open();
    await using _services = services;
    const [one, two] = [version(1), version(2)];
    const asked = [ask(one), ask(two)];
    families.parentOf(two).resolve();
    await turn();
    expect(running()).toEqual([2]);
    families.parentOf(one).resolve();
    await turn();
    expect(running()).toEqual([2]);
    // Both wait for a child of it.
    expect(services.figures().waiting).toBe(2);
    await services[Symbol.asyncDispose]();
    expect(await Promise.all(asked)).toMatchObject([{ code: "SHUTTING_DOWN" }, { code: "SHUTTING_DOWN" }]);
  });

  test("has an earlier one answer until the one that was asked for last is ready", async () => {
    const { families, services, ask, running } = open();
    await using _services = services;
    const [one, two] = [version(1), version(2)];
    void ask(one);
    void ask(two);
    families.parentOf(one).resolve();
    await turn();
    expect(running()).toEqual([1]);
    families.parentOf(two).resolve();
    await turn();
    expect(running()).toEqual([2]);
  });

  test("goes back to an earlier one when that is asked for again, although the later one gets ready", async () => {
    const { families, services, ask, running } = open();
    await using _services = services;
    const [one, two] = [version(1), version(2)];
    families.parentOf(one).resolve();
    void ask(one);
    await turn();
    void ask(two);
    void ask(one);
    families.parentOf(two).resolve();
    await turn();
    expect(running()).toEqual([1]);
  });

  test("runs none that was removed while it loaded", async () => {
    const { families, services, ask, running } = open();
    await using _services = services;
    const one = version(1);
    const asked = ask(one);
    await turn();
    services.remove("shop");
    families.parentOf(one).resolve();
    expect(await asked).toMatchObject({ code: "WORKER_NOT_FOUND" });
    expect(running()).toEqual([]);
  });

  test("still counts what a version had done that is gone", async () => {
    const { families, services, ask } = open();
    await using _services = services;
    const one = version(1);
    families.parentOf(one).resolve();
    const leaves = new AbortController();
    const asked = ask(one, leaves.signal);
    await turn();
    expect(services.figures()).toMatchObject({ waiting: 1, children: { starting: 1 } });
    leaves.abort(new FlurryError("ABORTED", "The caller has left"));
    await asked;
    services.remove("shop");
    await turn();
    expect(services.figures()).toMatchObject({ waiting: 0, outcomes: { canceled: 1, answered: 0 } });
  });
});
