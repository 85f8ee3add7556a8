import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { limits, MARKER } from "../../guest-agent/protocol/constants.ts";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";
import { rejection } from "../support/agent-peer.ts";
import { AgentUnderTest } from "../support/agent-process.ts";

// A bound for a machine that has other things to do, no expectation.
setDefaultTimeout(60_000);

let agent: AgentUnderTest;
let client: AgentClient;
let dir: string;

beforeAll(async () => {
  agent = await AgentUnderTest.start();
  ({ client } = await agent.client());
  dir = agent.directory;
}, 120_000);

afterAll(async () => {
  await client[Symbol.asyncDispose]();
  await agent[Symbol.asyncDispose]();
});

describe("putFile()", () => {
  test("writes a file with its mode and the directories above it", async () => {
    const path = join(dir, "deep/er/file.txt");
    expect(await client.putFile(path, "hällo", { mode: 0o751 })).toEqual({ size: 6 });
    expect(readFileSync(path, "utf8")).toBe("hällo");
    expect(statSync(path).mode & 0o7777).toBe(0o751);
    expect(readdirSync(join(dir, "deep/er"))).toEqual(["file.txt"]);
    expect(await client.putFile(path, "")).toEqual({ size: 0 });
    expect(statSync(path).size).toBe(0);
  });

  test("takes tens of megabytes, and getFile() gives them back", async () => {
    const size = 30 << 20;
    async function* blocks() {
      for (let at = 0; at < size; at += 1 << 20) yield block(at);
    }
    const path = join(dir, "large");
    expect(await client.putFile(path, blocks())).toEqual({ size });
    const sent = createHash("sha256");
    for (let at = 0; at < size; at += 1 << 20) sent.update(block(at));
    const digest = sent.digest("hex");
    expect(createHash("sha256").update(readFileSync(path)).digest("hex")).toBe(digest);
    const received = createHash("sha256");
    for await (const chunk of client.getFile(path)) received.update(chunk);
    expect(received.digest("hex")).toBe(digest);
  });

  test("carries markers, wherever they fall", async () => {
    const path = join(dir, "markers");
    const rest = MARKER.subarray(1);
    // A length whose last byte is the marker's first one, before the rest of a marker.
    const tricky = Buffer.concat([rest, Buffer.alloc(255 - rest.length)]);
    const contents = [
      Buffer.concat(Array.from({ length: 5000 }, () => MARKER)),
      tricky,
      MARKER,
      Buffer.concat([tricky, MARKER]),
    ];
    for (let pad = 0; pad < 9; pad++) {
      contents.push(Buffer.concat([Buffer.alloc(limits.CHUNK_MAX - pad), MARKER, Buffer.alloc(3)]));
    }
    for (const content of contents) {
      await client.putFile(path, content);
      expect(readFileSync(path).equals(content)).toBe(true);
      expect(Buffer.from(await new Response(client.getFile(path)).bytes()).equals(content)).toBe(true);
    }
  });

  test("reports what the guest's kernel says, and leaves no part of a file", async () => {
    mkdirSync(join(dir, "taken"));
    expect(await rejection(client.putFile(join(dir, "taken"), "x"))).toMatchObject({
      code: "AGENT_REFUSED",
      errno: "EISDIR",
    });
    writeFileSync(join(dir, "plain"), "");
    expect(await rejection(client.putFile(join(dir, "plain/below"), "x"))).toMatchObject({
      errno: "ENOTDIR",
    });
    const endless = new ReadableStream<Uint8Array>({ pull: (c) => c.enqueue(new Uint8Array(1000)) });
    expect(await rejection(client.putFile("/proc/nothing", endless))).toMatchObject({
      code: "AGENT_REFUSED",
    });
    await client.quiesce();
    client.release();
    expect(readdirSync(dir).filter((name) => name.startsWith(".flurry"))).toEqual([]);
  });

  test("is refused even if its source never says anything", async () => {
    const silent = new ReadableStream<Uint8Array>();
    expect(await rejection(client.putFile("/proc/nothing", silent))).toMatchObject({ code: "AGENT_REFUSED" });
  });

  test("leaves the old file when the source fails half-way or the caller aborts", async () => {
    const path = join(dir, "kept");
    writeFileSync(path, "old");
    async function* failing() {
      yield new Uint8Array(300_000);
      throw new Error("the source broke");
    }
    expect((await rejection(client.putFile(path, failing()))).message).toBe("the source broke");
    const aborter = new AbortController();
    async function* aborting() {
      yield new Uint8Array(300_000);
      aborter.abort();
      yield new Uint8Array(300_000);
    }
    expect(await rejection(client.putFile(path, aborting(), { signal: aborter.signal }))).toMatchObject({
      code: "ABORTED",
    });
    await client.ping();
    await client.quiesce();
    client.release();
    expect(readFileSync(path, "utf8")).toBe("old");
    expect(readdirSync(dir).filter((name) => name.startsWith(".flurry"))).toEqual([]);
  });
});

describe("getFile()", () => {
  test("reads files that the kernel makes up, whose size is 0", async () => {
    const file = await client.openFile("/proc/self/status");
    expect(file.size).toBe(0);
    expect(await new Response(file.body).text()).toContain(`Pid:\t${agent.pid}`);
  });

  test("gives size, mode and time before the bytes", async () => {
    const path = join(dir, "stat");
    writeFileSync(path, "12345", { mode: 0o640 });
    const { body, ...info } = await client.openFile(path);
    expect(info).toEqual({ size: 5, mode: 0o640, mtimeMs: Math.floor(statSync(path).mtimeMs) });
    expect(await new Response(body).text()).toBe("12345");
  });

  test("refuses what is missing, a directory and a pipe", async () => {
    execFileSync("mkfifo", [join(dir, "fifo")]);
    const cases = { missing: "ENOENT", ".": "EISDIR", fifo: "EINVAL" };
    for (const [name, errno] of Object.entries(cases)) {
      const error = await rejection(client.getFile(join(dir, name)).getReader().read());
      expect(error).toMatchObject({ code: "AGENT_REFUSED", errno });
    }
  });

  test("can be given up after the first bytes", async () => {
    const path = join(dir, "endless");
    execFileSync("truncate", ["-s", "1G", path]);
    const reader = client.getFile(path).getReader();
    expect((await reader.read()).value!.length).toBeGreaterThan(0);
    await reader.cancel();
    await client.ping();
    await client.quiesce();
    client.release();
  });
});

describe("list()", () => {
  test("lists everything below a directory with type, size and mode, sorted", async () => {
    const root = join(dir, "tree");
    mkdirSync(join(root, "sub/empty"), { recursive: true });
    writeFileSync(join(root, "a"), "123", { mode: 0o600 });
    writeFileSync(join(root, "sub/ü"), "");
    symlinkSync("/etc", join(root, "link"));
    execFileSync("mkfifo", [join(root, "pipe")]);
    const entries = await client.list(root);
    expect(entries.map(({ path, type, size }) => `${type} ${path} ${size}`)).toEqual([
      "file a 3",
      "symlink link 0",
      "other pipe 0",
      "dir sub 0",
      "dir sub/empty 0",
      "file sub/ü 0",
    ]);
    expect(entries[0]).toMatchObject({ mode: 0o600, mtimeMs: Math.floor(statSync(join(root, "a")).mtimeMs) });
  });

  test("lists more than a window of entries", async () => {
    const root = join(dir, "many");
    mkdirSync(root);
    const names = Array.from({ length: 1200 }, (_, i) => `${String(i).padStart(6, "0")}-${"n".repeat(230)}`);
    for (const name of names) writeFileSync(join(root, name), "");
    expect((await client.list(root)).map((entry) => entry.path)).toEqual(names);
  });

  test("refuses a file, what is missing, and a tree without end", async () => {
    writeFileSync(join(dir, "no-dir"), "");
    expect(await rejection(client.list(join(dir, "no-dir")))).toMatchObject({ errno: "ENOTDIR" });
    expect(await rejection(client.list(join(dir, "missing")))).toMatchObject({ errno: "ENOENT" });
    mkdirSync(join(dir, "deepest", ...Array.from({ length: limits.DEPTH_MAX + 1 }, () => "d")), {
      recursive: true,
    });
    expect(await rejection(client.list(join(dir, "deepest")))).toMatchObject({ errno: "ELOOP" });
    await client.quiesce();
    client.release();
  });
});

function block(at: number): Uint8Array {
  const words = new Uint32Array(1 << 18);
  for (let i = 0, x = at + 1; i < words.length; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    words[i] = x;
  }
  return new Uint8Array(words.buffer);
}
