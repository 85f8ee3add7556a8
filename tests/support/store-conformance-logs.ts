import { describe, expect, test } from "bun:test";
import type { LogStore, NewLogChunk } from "../../runtime/jobs/ports.ts";
import type { OpenPort } from "./store-port.ts";

/** What every LogStore does. */
export function logStoreConformance(open: OpenPort<LogStore>): void {
  describe("a LogStore", () => {
    test("read() gives a job's chunks in the order of their appending, also after a restart", async () => {
      await using store = await open();
      await store.port.append("a", [chunk(0, "one"), chunk(1, "two", "stderr")]);
      store.clock.advance(1000);
      await store.port.append("b", [chunk(0, "not of a")]);
      await store.port.append("a", [chunk(0, "three", "system", 2)]);
      const read = await store.port.read("a", { after: 0, limit: 10 });
      expect(read.map(({ id: _, ...rest }) => rest)).toEqual([
        { task: 0, attempt: 1, stream: "stdout", text: "one", at: "2026-01-31T12:00:00.000Z" },
        { task: 1, attempt: 1, stream: "stderr", text: "two", at: "2026-01-31T12:00:00.000Z" },
        { task: 0, attempt: 2, stream: "system", text: "three", at: "2026-01-31T12:00:01.000Z" },
      ]);
      await store.reopen();
      expect(await store.port.read("a", { after: 0, limit: 10 })).toEqual(read);
      expect(await store.port.read("none", { after: 0, limit: 10 })).toEqual([]);
    });

    test("pages after an id meet every chunk once, of a job and of one of its tasks", async () => {
      await using store = await open();
      const chunks = Array.from({ length: 25 }, (_, i) => chunk(i % 3, `${i}`));
      for (let at = 0; at < chunks.length; at += 4) await store.port.append("job", chunks.slice(at, at + 4));
      expect(await pagesOf(store.port, undefined, 4)).toEqual(chunks.map(({ text }) => text));
      expect(await pagesOf(store.port, 1, 2)).toEqual(
        chunks.filter(({ task }) => task === 1).map(({ text }) => text),
      );
      expect(await pagesOf(store.port, 7, 2)).toEqual([]);
    });

    test("ids go on growing after a restart and after a removal", async () => {
      await using store = await open();
      await store.port.append("a", [chunk(0, "1")]);
      const [first] = await store.port.read("a", { after: 0, limit: 1 });
      await store.reopen();
      await store.port.append("b", [chunk(0, "2")]);
      await store.port.remove("b");
      await store.port.append("a", [chunk(0, "3")]);
      const rest = await store.port.read("a", { after: first!.id, limit: 10 });
      expect(rest.map(({ text }) => text)).toEqual(["3"]);
      expect(rest[0]!.id).toBeGreaterThan(first!.id);
    });

    test.each(["", "\0", "a\0b\0", "\ufeffwith a mark", "\u{1f600} é \r\n", "\uffff", "x".repeat(65_536)])(
      "keeps the text %j as it is",
      async (text) => {
        await using store = await open();
        await store.port.append("job", [chunk(0, text)]);
        expect((await store.port.read("job", { after: 0, limit: 1 }))[0]!.text).toBe(text);
      },
    );

    test("remove() takes one job's chunks, however many, while others are appended", async () => {
      await using store = await open();
      const many = Array.from({ length: 1000 }, (_, i) => chunk(i, "of a"));
      await store.port.append("a", many);
      await store.port.append("b", [chunk(0, "of b")]);
      await Promise.all([store.port.remove("a"), store.port.append("b", [chunk(1, "of b too")])]);
      expect(await store.port.read("a", { after: 0, limit: 10 })).toEqual([]);
      expect((await store.port.read("b", { after: 0, limit: 10 })).map(({ text }) => text)).toEqual([
        "of b",
        "of b too",
      ]);
      await store.port.remove("a");
      await store.port.remove("never");
    });

    test("onAppend() tells of each append when it can be read, until it is disposed of", async () => {
      await using store = await open();
      const told: string[] = [];
      {
        using _listening = store.port.onAppend((job) => told.push(job));
        await store.port.append("a", [chunk(0, "1")]);
        await store.port.append("b", [chunk(0, "2"), chunk(0, "3")]);
        expect(told).toEqual(["a", "b"]);
      }
      await store.port.append("a", [chunk(0, "4")]);
      expect(told).toEqual(["a", "b"]);
    });
  });
}

function chunk(
  task: number,
  text: string,
  stream: NewLogChunk["stream"] = "stdout",
  attempt = 1,
): NewLogChunk {
  return { task, attempt, stream, text };
}

async function pagesOf(store: LogStore, task: number | undefined, limit: number): Promise<string[]> {
  const texts: string[] = [];
  for (let after = 0; ; ) {
    const page = await store.read("job", { task, after, limit });
    if (page.length === 0) return texts;
    expect(page.length).toBeLessThanOrEqual(limit);
    texts.push(...page.map(({ text }) => text));
    after = page.at(-1)!.id;
  }
}
