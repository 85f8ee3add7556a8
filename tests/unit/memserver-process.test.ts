import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decodeWorkingSet, encodeWorkingSet } from "../../memserver/child/working-set.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { rejection } from "../support/agent-peer.ts";
import { Controlled } from "../support/memserver-control.ts";
import { MACHINE, type MadeUpImage, makeImage } from "../support/memserver-images.ts";
import { bitmapOf, ScriptedQemu } from "../support/memserver-qemu.ts";
import { openDescriptors, openedSince, temporaryDirectory } from "../support/vm.ts";

const PAGES = 200;
const BLOCK = { name: "ram0", bytes: PAGES * PAGE_BYTES };
const ZEROS = [3, 4, 150];
const AT_ONCE = { afterMs: 0, bytesPerSecond: null };

let stack: AsyncDisposableStack;
let memserver: Controlled;
let image: MadeUpImage;
let before: string[];

beforeEach(async () => {
  before = openDescriptors();
  stack = new AsyncDisposableStack();
  const { path } = stack.use(temporaryDirectory());
  image = makeImage(stack.use(temporaryDirectory()).path, PAGES, ZEROS);
  memserver = stack.use(new Controlled(path));
});

afterEach(async () => {
  await stack.disposeAsync();
  expect(openedSince(before)).toEqual([]);
});

async function qemu(options?: { recovers?: boolean }): Promise<ScriptedQemu> {
  return stack.use(await ScriptedQemu.listen([BLOCK], options));
}

function open({ hash, dir }: MadeUpImage = image) {
  return memserver.ask<"open">({ op: "open", image: hash, dir, holders: [] });
}

function detach(child: string, keep = false) {
  return memserver.ask<"detach">({ op: "detach", child, keep });
}

function workingSetFile(): number[] | undefined {
  const path = join(image.dir, "working-set");
  return existsSync(path) ? [...decodeWorkingSet(readFileSync(path), PAGES)] : undefined;
}

/** Has a child attached that shows its working set, and asks for these pages. */
async function show(child: string, pages: readonly number[]): Promise<ScriptedQemu> {
  const waiting = await qemu();
  const { recording } = await memserver.attach(child, image.hash, waiting.path, { workingSet: true });
  expect(recording).toBe(true);
  await waiting.until(() => waiting.kinds.includes("part"));
  for (const page of pages) waiting.request(page);
  await waiting.until(() => waiting.pages.length === pages.length);
  return waiting;
}

/** Plays QEMU's part in a recovery. */
async function recover(waiting: ScriptedQemu, had: readonly number[]): Promise<void> {
  await waiting.until(() => waiting.kinds.includes("recv-bitmap"));
  waiting.say(bitmapOf(BLOCK, had));
  await waiting.until(() => waiting.kinds.includes("resume"));
  waiting.say({ kind: "resume-ack", at: 0 });
}

describe("a memserver", () => {
  test("says that it is there, opens an image, and tells what it is", async () => {
    await memserver.told("ready");
    const dataPages = PAGES - ZEROS.length;
    expect(await open()).toEqual({ pages: PAGES, dataPages, complete: true });
    expect(await open()).toEqual({ pages: PAGES, dataPages, complete: true });
    expect(await memserver.ask<"ping">({ op: "ping" })).toEqual({});
  });

  test("gives a child its memory, and says when it has all of it", async () => {
    await open();
    const waiting = await qemu();
    const attached = await memserver.attach("vm-1", image.hash, waiting.path, { background: AT_ONCE });
    expect(attached).toEqual({ recording: false });
    await waiting.until(() => waiting.ended);
    expect(waiting.items[1]).toMatchObject({ kind: "configuration", machine: MACHINE });
    for (const { page, data } of waiting.pages) expect(data.equals(image.source.content(page))).toBe(true);
    waiting.say({ kind: "shut", at: 0, status: 0 });
    expect(await memserver.told("complete")).toEqual({ event: "complete", child: "vm-1" });
    const stats = await memserver.ask<"stats">({ op: "stats", child: "vm-1" });
    expect(stats).toMatchObject({ requests: 0, pushed: PAGES - ZEROS.length });
    await detach("vm-1");
    const error = await rejection(memserver.ask<"stats">({ op: "stats", child: "vm-1" }));
    expect(error.code).toBe("BAD_ARGUMENT");
  });

  test("says that a child is lost, and takes it on again", async () => {
    await open();
    const first = await qemu();
    await memserver.attach("vm-1", image.hash, first.path);
    await first.until(() => first.kinds.includes("part"));
    first.main.destroy();
    expect(await memserver.told("lost")).toMatchObject({ child: "vm-1" });
    const second = await qemu({ recovers: true });
    const changes = { recover: true, background: AT_ONCE };
    const recovering = memserver.attach("vm-1", image.hash, second.path, changes);
    await recover(second, [0, 1]);
    expect(await recovering).toEqual({ recording: false });
    await second.until(() => second.ended);
    expect(second.pages).toHaveLength(PAGES - ZEROS.length - 2);
  });

  test("says that a child cannot be served any more, and serves the others", async () => {
    await open();
    const [bad, good] = [await qemu(), await qemu()];
    await memserver.attach("vm-bad", image.hash, bad.path);
    await memserver.attach("vm-good", image.hash, good.path);
    await bad.until(() => bad.kinds.includes("part"));
    bad.main.write(Buffer.alloc(64, 0xff));
    const failed = await memserver.told("failed");
    expect(failed).toMatchObject({ child: "vm-bad", error: { code: "STREAM_INVALID" } });
    await good.until(() => good.kinds.includes("part"));
    good.request(77);
    await good.until(() => good.pages.length === 1);
    expect(memserver.events.filter((event) => "child" in event && event.child === "vm-good")).toEqual([]);
  });

  test("refuses a child that is attached, one that does not wait, and an image that is not open", async () => {
    const waiting = await qemu();
    const early = await rejection(memserver.attach("vm-1", image.hash, waiting.path));
    expect(early.code).toBe("IMAGE_NOT_FOUND");
    await open();
    const missing = await rejection(memserver.attach("vm-1", image.hash, `${waiting.path}-not`));
    expect(missing.code).toBe("MEMSERVER_FAILED");
    const both = [waiting, await qemu()].map(({ path }) => memserver.attach("vm-1", image.hash, path));
    const settled = await Promise.allSettled(both);
    expect(settled.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    const again = await rejection(memserver.attach("vm-1", image.hash, waiting.path));
    expect(again.code).toBe("BAD_ARGUMENT");
    // It is still served.
    await waiting.until(() => waiting.kinds.includes("part"));
    waiting.request(9);
    await waiting.until(() => waiting.pages.length === 1);
  });

  test("lets go of a child that is detached while it is attached", async () => {
    await open();
    const waiting = await qemu();
    const attaching = memserver.attach("vm-1", image.hash, waiting.path, { workingSet: true });
    const attached = attaching.then(
      () => "attached",
      () => "not attached",
    );
    await detach("vm-1");
    await attached;
    const error = await rejection(memserver.ask<"stats">({ op: "stats", child: "vm-1" }));
    expect(error.code).toBe("BAD_ARGUMENT");
    // Whoever comes next can show the working set.
    await show("vm-2", [7]);
  });

  test("lets go of a child that is detached while it is recovered", async () => {
    await open();
    const waiting = await qemu({ recovers: true });
    const recovering = rejection(memserver.attach("vm-1", image.hash, waiting.path, { recover: true }));
    await waiting.until(() => waiting.kinds.includes("recv-bitmap"));
    await detach("vm-1");
    await recovering;
    await waiting.until(() => waiting.left);
  });

  test("lets go of a child that is being recovered when it ends", async () => {
    await open();
    const waiting = await qemu({ recovers: true });
    const recovering = rejection(memserver.attach("vm-1", image.hash, waiting.path, { recover: true }));
    await waiting.until(() => waiting.kinds.includes("recv-bitmap"));
    await memserver.server.children[Symbol.asyncDispose]();
    await recovering;
    await waiting.until(() => waiting.left);
  });

  test("takes a child on again that it believes to have still", async () => {
    await open();
    const first = await qemu();
    await memserver.attach("vm-1", image.hash, first.path);
    await first.until(() => first.kinds.includes("part"));
    // QEMU has lost the first connection without this having heard of it.
    const second = await qemu({ recovers: true });
    const recovering = memserver.attach("vm-1", image.hash, second.path, { recover: true });
    await second.until(() => second.kinds.includes("recv-bitmap"));
    await first.until(() => first.left);
    await recover(second, []);
    await recovering;
    second.request(5);
    await second.until(() => second.pages.length === 1);
    expect(memserver.events.filter(({ event }) => event === "lost")).toEqual([]);
  });
});

describe("the working set", () => {
  test("is what the first child asked for, sent to those that follow before they ask", async () => {
    await open();
    await show("vm-1", [9, 3, 100, 8]);
    // Not while it goes on, and not by two.
    const second = await qemu();
    const besides = await memserver.attach("vm-2", image.hash, second.path, { workingSet: true });
    expect(besides).toEqual({ recording: false });
    await second.until(() => second.kinds.includes("part"));
    expect(second.pages).toEqual([]);
    await detach("vm-1", true);
    expect(workingSetFile()).toEqual([9, 3, 100, 8]);
    expect(readdirSync(image.dir).sort()).toEqual(["descriptor", "memory", "pages", "working-set"]);
    const third = await qemu();
    const served = await memserver.attach("vm-3", image.hash, third.path, { workingSet: true });
    expect(served).toEqual({ recording: false });
    await third.until(() => third.pages.length === 4);
    expect(third.pagesOf("ram0")).toEqual([9, 3, 100, 8]);
    const fourth = await qemu();
    await memserver.attach("vm-4", image.hash, fourth.path, { workingSet: false });
    await fourth.until(() => fourth.kinds.includes("part"));
    fourth.request(0);
    await fourth.until(() => fourth.pages.length === 1);
  });

  test("is not kept of a child that is given up, and shown by the next one", async () => {
    await open();
    await show("vm-1", [9, 3]);
    await detach("vm-1", false);
    expect(workingSetFile()).toBeUndefined();
    await show("vm-2", [7, 6]);
    await detach("vm-2", true);
    expect(workingSetFile()).toEqual([7, 6]);
  });

  test("is not kept of a child that was lost on the way, and shown by the next one", async () => {
    await open();
    const first = await show("vm-1", [9, 3]);
    first.main.destroy();
    await memserver.told("lost");
    const again = await qemu({ recovers: true });
    const changes = { recover: true, workingSet: true };
    const recovering = memserver.attach("vm-1", image.hash, again.path, changes);
    await recover(again, [9, 3]);
    expect(await recovering).toEqual({ recording: false });
    again.request(5);
    await again.until(() => again.pages.length === 1);
    await detach("vm-1", true);
    expect(workingSetFile()).toBeUndefined();
    await show("vm-2", [7, 6]);
  });

  test("is shown by the next child when the first one does not wait", async () => {
    await open();
    const nobody = memserver.attach("vm-1", image.hash, join(image.dir, "nobody"), { workingSet: true });
    await rejection(nobody);
    await show("vm-2", [7]);
  });

  test("is not kept of a child that asked for nothing", async () => {
    await open();
    await show("vm-1", []);
    await detach("vm-1", true);
    expect(workingSetFile()).toBeUndefined();
    await show("vm-2", [7]);
  });

  test.each([
    ["cut short", Buffer.from("010000", "hex")],
    ["of pages that there are not", encodeWorkingSet(Uint32Array.of(1, PAGES))],
    ["with a page twice", encodeWorkingSet(Uint32Array.of(1, 2, 1))],
  ])("is shown anew when its file is %s", async (_what, bytes) => {
    writeFileSync(join(image.dir, "working-set"), bytes);
    await open();
    await show("vm-1", [7, 6]);
    await detach("vm-1", true);
    expect(workingSetFile()).toEqual([7, 6]);
  });

  test("is not missed when it cannot be kept: the child is let go all the same", async () => {
    await open();
    await using shows = await show("vm-1", [9]);
    rmSync(image.dir, { recursive: true });
    expect(await detach("vm-1", true)).toEqual({});
    await shows.until(() => shows.left);
    expect(memserver.trouble).toEqual([expect.objectContaining({ code: "ENOENT" })]);
  });

  test("is taken from its file", async () => {
    writeFileSync(join(image.dir, "working-set"), encodeWorkingSet(Uint32Array.of(42, 7)));
    await open();
    const waiting = await qemu();
    await memserver.attach("vm-1", image.hash, waiting.path, { workingSet: true });
    await waiting.until(() => waiting.pages.length === 2);
    expect(waiting.pagesOf("ram0")).toEqual([42, 7]);
  });
});

describe("a memserver's end", () => {
  test("comes with that of what is said to it", async () => {
    memserver.end();
    expect(await memserver.server.closed).toBeUndefined();
  });

  test.each([
    ["what is no JSON", "{\n"],
    ["no object", "null\n"],
    ["an unknown request", '{"id":1,"op":"dance"}\n'],
    ["a request with more in it", '{"id":1,"op":"ping","more":1}\n'],
    ["a request with less in it", '{"id":1,"op":"detach","child":"vm-1"}\n'],
    ["an image that is no hash", '{"id":1,"op":"close","image":"../../etc"}\n'],
    ["a line without an end", "x".repeat(1024 * 1024 + 1)],
    ["bytes", Buffer.from("ff00ff00\n", "latin1")],
  ])("comes with %s", async (_what, said) => {
    memserver.say('{"id":0,"op":"ping"}\n');
    memserver.say(said);
    const error = await memserver.server.closed;
    expect(error).toBeInstanceOf(Error);
    expect(error?.message).not.toBe("");
  });
});
