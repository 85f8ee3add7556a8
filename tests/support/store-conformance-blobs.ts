import { describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import type { BlobStore } from "../../runtime/jobs/ports.ts";
import { rejection } from "./agent-peer.ts";
import type { OpenPort } from "./store-port.ts";

const HELLO = new TextEncoder().encode("hello, blob");

/** What every BlobStore does. */
export function blobStoreConformance(open: OpenPort<BlobStore>): void {
  describe("a BlobStore", () => {
    test("put() tells size and SHA-256, and get() gives the same bytes, also after a restart", async () => {
      await using store = await open();
      const bytes = randomBytes(700_001);
      const stored = await store.port.put("job/0/token/1", pieces(bytes, 65_536));
      expect(stored).toEqual({ size: bytes.length, sha256: sha256(bytes) });
      expect(await contentOf(store.port, "job/0/token/1")).toEqual(bytes);
      await store.reopen();
      expect(await contentOf(store.port, "job/0/token/1")).toEqual(bytes);
    });

    test("keeps an empty content apart from none", async () => {
      await using store = await open();
      expect(await store.port.put("empty", pieces(new Uint8Array(0), 1))).toEqual({
        size: 0,
        sha256: sha256(new Uint8Array(0)),
      });
      expect(await contentOf(store.port, "empty")).toEqual(new Uint8Array(0));
      for (const key of ["none", "none/below", "empty/below"])
        expect(await store.port.get(key)).toBeUndefined();
    });

    test("gives no blob for what is only the beginning of keys", async () => {
      await using store = await open();
      await store.port.put("job/0/token/1", pieces(HELLO, 3));
      expect(await store.port.get("job/0")).toBeUndefined();
      expect(await store.port.get("job/0/token")).toBeUndefined();
    });

    test.each([
      [0, 5, "hello"],
      [7, 11, "blob"],
      [7, 100, "blob"],
      [3, 3, ""],
      [11, 12, ""],
      [50, 60, ""],
    ])("get() from %d to %d gives %p", async (start, end, expected) => {
      await using store = await open();
      await store.port.put("key", pieces(HELLO, 4));
      const bytes = await contentOf(store.port, "key", { start, end });
      expect(new TextDecoder().decode(bytes)).toBe(expected);
    });

    test("a content can be replaced; who reads the one of before goes on with it", async () => {
      await using store = await open();
      const before = randomBytes(900_000);
      await store.port.put("key", pieces(before, 65_536));
      const reader = (await store.port.get("key"))!.getReader();
      const first = (await reader.read()).value!;
      await store.port.put("key", pieces(HELLO, 4));
      const rest = await collected(restOf(reader));
      expect(Buffer.concat([first, rest])).toEqual(Buffer.from(before));
      expect(await contentOf(store.port, "key")).toEqual(HELLO);
    });

    test("a source that fails leaves nothing, and its own error comes through", async () => {
      await using store = await open();
      const failure = Object.assign(new Error("the channel broke"), { code: "ENOSPC" });
      const failing = async function* () {
        yield HELLO;
        throw failure;
      };
      expect(await rejection(store.port.put("key", failing()))).toBe(failure);
      expect(await store.port.get("key")).toBeUndefined();
    });

    test("an abort ends a put() whose source is silent, and leaves nothing", async () => {
      await using store = await open();
      const abort = new AbortController();
      const silent = Promise.withResolvers<void>();
      const source = async function* () {
        yield HELLO;
        silent.resolve();
        await new Promise(() => undefined);
      };
      const putting = rejection(store.port.put("key", source(), abort.signal));
      await silent.promise;
      abort.abort(new Error("enough"));
      expect((await putting).code).toBe("ABORTED");
      expect(await store.port.get("key")).toBeUndefined();
      expect((await rejection(store.port.put("key", pieces(HELLO, 4), abort.signal))).code).toBe("ABORTED");
    });

    test("a failed put() leaves the content of before, and releases the source", async () => {
      await using store = await open();
      await store.port.put("key", pieces(HELLO, 4));
      let released = false;
      const abort = new AbortController();
      const source = async function* () {
        try {
          yield randomBytes(10);
          abort.abort();
          yield randomBytes(10);
        } finally {
          released = true;
        }
      };
      expect((await rejection(store.port.put("key", source(), abort.signal))).code).toBe("ABORTED");
      expect(released).toBe(true);
      expect(await contentOf(store.port, "key")).toEqual(HELLO);
    });

    test("removeAll() takes a key and all below it, and nothing that only begins alike", async () => {
      await using store = await open();
      const keys = ["job1/0/a/0", "job1/0/a/1", "job1/0/ab/0", "job1/1/a/0", "job10/0/a/0", "single"];
      for (const key of keys) await store.port.put(key, pieces(HELLO, 4));
      await store.port.removeAll("job1/0/a");
      expect(await present(store.port, keys)).toEqual(keys.slice(2));
      await store.port.removeAll("job1");
      await store.port.removeAll("single");
      expect(await present(store.port, keys)).toEqual(["job10/0/a/0"]);
      await store.port.removeAll("job1");
      await store.port.removeAll("never/there");
      await store.port.removeAll("job10/0/a/0/below");
      await store.reopen();
      expect(await present(store.port, keys)).toEqual(["job10/0/a/0"]);
    });

    test("puts at the same time end as each alone, also with a removeAll() beside them", async () => {
      await using store = await open();
      const keys = Array.from({ length: 40 }, (_, i) => `job/${i % 2}/token-${i % 8}/${i}`);
      const puts = keys.map((key) => store.port.put(key, pieces(HELLO, 4)));
      const removals = keys.map((_, i) => store.port.removeAll(`job/${i % 2}/other`));
      for (const stored of await Promise.all(puts)) expect(stored.sha256).toBe(sha256(HELLO));
      await Promise.all(removals);
      expect(await present(store.port, keys)).toEqual(keys);
      const again = keys.map((key) => store.port.put(key, pieces(HELLO, 4)));
      await Promise.all([...again, store.port.removeAll("job"), store.port.removeAll("job")]);
      for (const key of await present(store.port, keys))
        expect(await contentOf(store.port, key)).toEqual(HELLO);
    });

    test("a stream that is canceled can be read again from the start", async () => {
      await using store = await open();
      const bytes = randomBytes(900_000);
      await store.port.put("key", pieces(bytes, 65_536));
      const stream = (await store.port.get("key"))!;
      const reader = stream.getReader();
      await reader.read();
      await reader.cancel();
      expect(await contentOf(store.port, "key")).toEqual(bytes);
    });

    test.each(["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a/.", "ä", "a\0", "a b", "a\\b", "a\n"])(
      "refuses %p as a key",
      async (key) => {
        await using store = await open();
        for (const attempt of [
          store.port.put(key, pieces(HELLO, 4)),
          store.port.get(key),
          store.port.removeAll(key),
        ])
          expect((await rejection(attempt)).code).toBe("BAD_ARGUMENT");
      },
    );
  });
}

/** A content in pieces. */
export async function* pieces(bytes: Uint8Array, size: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += size) yield bytes.subarray(at, at + size);
}

/** The content of a blob that is there. */
export async function contentOf(
  store: BlobStore,
  key: string,
  range?: { start: number; end: number },
): Promise<Uint8Array> {
  const stream = await store.get(key, range);
  if (!stream) throw new Error(`No blob ${key}`);
  return await collected(stream);
}

async function collected(source: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of source) chunks.push(chunk);
  return new Uint8Array(Buffer.concat(chunks));
}

async function* restOf(reader: ReadableStreamDefaultReader<Uint8Array>): AsyncGenerator<Uint8Array> {
  for (let step = await reader.read(); !step.done; step = await reader.read()) yield step.value;
}

async function present(store: BlobStore, keys: readonly string[]): Promise<string[]> {
  const there: string[] = [];
  for (const key of keys) {
    const stream = await store.get(key);
    await stream?.cancel();
    if (stream) there.push(key);
  }
  return there;
}

/** Bytes that look random and are the same in every run. */
function randomBytes(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = 0x2009_0402;
  for (let at = 0; at < length; at++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[at] = state >>> 24;
  }
  return bytes;
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}
