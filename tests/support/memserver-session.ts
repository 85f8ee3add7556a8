import { expect } from "bun:test";
import type { ChildSpec } from "../../memserver/child/child-spec.ts";
import { ChildSession } from "../../memserver/child/session.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { ScriptedQemu, type ScriptedQemuOptions } from "./memserver-qemu.ts";
import { ScriptedSource, type ScriptedSourceOptions } from "./memserver-source.ts";
import { DEVICES } from "./memserver-streams.ts";

/** In the background, which then never begins. */
export const NEVER = { afterMs: 1e8, bytesPerSecond: Number.POSITIVE_INFINITY };
export const AT_ONCE = { afterMs: 0, bytesPerSecond: Number.POSITIVE_INFINITY };

export interface Setting extends AsyncDisposable {
  qemu: ScriptedQemu;
  source: ScriptedSource;
  spec: ChildSpec;
  start(): Promise<ChildSession>;
  recover(): Promise<ChildSession>;
}

/** A QEMU that waits, an image for it, and what a session with it needs to know. */
export async function setting(
  image: ScriptedSourceOptions,
  changes: Partial<ChildSpec> & ScriptedQemuOptions = {},
): Promise<Setting> {
  const { recovers, runs, ...specChanges } = changes;
  await using stack = new AsyncDisposableStack();
  const source = stack.use(new ScriptedSource(image));
  const block = { name: "ram0", bytes: image.pages * PAGE_BYTES };
  const qemu = stack.use(
    await ScriptedQemu.listen([block, { name: "pc.bios", bytes: 64 * PAGE_BYTES }], { recovers, runs }),
  );
  const spec: ChildSpec = {
    ...{ socket: qemu.path, machine: "pc-q35-10.0", block, devices: DEVICES },
    ...{ preempt: false, background: NEVER },
    ...specChanges,
  };
  const owned = stack.move();
  const own = async (starting: Promise<ChildSession>) => owned.use(await starting);
  return {
    qemu,
    source,
    spec,
    start: () => own(ChildSession.start(spec, source)),
    recover: () => own(ChildSession.recover(spec, source)),
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

/** Whole numbers, without the last one. */
export function range(from: number, to: number): number[] {
  return Array.from({ length: to - from }, (_, at) => from + at);
}

/** Holds all pages that have come against the image, each of which may come once. */
export function expectPages({ qemu, source }: Setting, pages: readonly number[]): void {
  expect(qemu.pagesOf("ram0").sort((a, b) => a - b)).toEqual(pages.toSorted((a, b) => a - b));
  const wrong = qemu.pages.filter(
    ({ block, page, data, zero }) =>
      block === "ram0" && (!data.equals(source.content(page)) || zero !== source.isZero(page)),
  );
  expect(wrong.map(({ page }) => page)).toEqual([]);
}

/** The end of a child that has got everything. */
export async function expectComplete({ qemu }: Setting, session: ChildSession): Promise<void> {
  await qemu.until(() => qemu.ended);
  expect(qemu.kinds.slice(-4)).toEqual(["section-end", "end", "section-end", "eof"]);
  qemu.say({ kind: "shut", at: 0, status: 0 });
  expect(await session.ended).toEqual({ kind: "complete" });
}

/** Events that are under way have been dealt with: those of a socket come in one of the next turns. */
export async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setTimeout(resolve, 1));
}
