import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Readable, Writable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { programArgv } from "../../runtime/adapters/program.ts";
import { Memserver } from "../../runtime/fork/memserver.ts";
import { Host } from "../../runtime/vm/host.ts";
import { rejection } from "../support/agent-peer.ts";
import { type MadeUpImage, makeImage } from "../support/memserver-images.ts";
import { ScriptedQemu } from "../support/memserver-qemu.ts";
import { descriptorsAfter, execPath } from "../support/memserver-traces.ts";
import {
  NO_TRACES,
  openDescriptors,
  ownDirectories,
  Script,
  stopProcess,
  type TemporaryDirectory,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

const PAGES = 100;
const BLOCK = { name: "ram0", bytes: PAGES * PAGE_BYTES };
const PROGRAM = join(import.meta.dirname, "../../memserver/main.ts");
const RUNTIME = join(import.meta.dirname, "../support/memserver-runtime.ts");
/** Longest time until a memserver that says nothing is replaced. */
const SILENCE_MS = 400;

let host: Host;
let directory: TemporaryDirectory;
let image: MadeUpImage;
let before: string[];

beforeAll(async () => {
  host = await Host.open();
  directory = temporaryDirectory();
  image = imageAt("image");
});

beforeEach(() => {
  before = openDescriptors();
});

afterEach(async () => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
  expect(await descriptorsAfter(before)).toEqual(before);
});

afterAll(async () => {
  directory[Symbol.dispose]();
  await host[Symbol.asyncDispose]();
});

function imageAt(name: string, zeros: number[] = []): MadeUpImage {
  const dir = join(directory.path, name);
  mkdirSync(dir);
  return makeImage(dir, PAGES, zeros);
}

function newMemserver(silenceMs?: number): Memserver {
  return new Memserver({ host, keys: join(directory.path, "keys"), silenceMs });
}

/** A shell script in place of a memserver. */
function pretender(name: string, script: string): string {
  const path = join(directory.path, name);
  writeFileSync(path, `#!/bin/sh\n${script}\n`);
  chmodSync(path, 0o755);
  return path;
}

function isGone(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return false;
  } catch {
    return true;
  }
}

async function untilGone(pid: number): Promise<void> {
  while (!isGone(pid)) await delay(5);
}

function attachTo(
  memserver: Memserver,
  child: string,
  qemu: ScriptedQemu,
  recover = false,
  hash = image.hash,
) {
  return memserver.attach({
    ...{ child, image: hash, socket: qemu.path, preempt: false, recover, measure: false },
    ...{ background: { afterMs: 1e8, bytesPerSecond: null }, workingSet: false },
  });
}

describe("Memserver", () => {
  test("is one process, started when it is needed, and gone when it is disposed", async () => {
    await using memserver = newMemserver();
    expect([memserver.starts, await memserver.pid()]).toEqual([0, undefined]);
    const others = [imageAt("one"), imageAt("two", [5])];
    const opened = await Promise.all(others.map(({ hash, dir }) => memserver.open(hash, dir)));
    expect(opened).toMatchObject([{ dataPages: PAGES }, { dataPages: PAGES - 1 }]);
    expect(memserver.starts).toBe(1);
    const pid = (await memserver.pid())!;
    expect(tracesOf(host).processes).toEqual([pid]);
    await memserver[Symbol.asyncDispose]();
    expect(isGone(pid)).toBe(true);
    const late = await rejection(memserver.open(image.hash, image.dir));
    expect([late.code, late.message]).toEqual(["MEMSERVER_FAILED", "The memserver has been ended"]);
  });

  test("is started again when it was killed, with the images that it had", async () => {
    await using memserver = newMemserver();
    await memserver.open(image.hash, image.dir);
    await using waiting = await ScriptedQemu.listen([BLOCK], { recovers: true });
    // This one never answers, so that the request is under way when it dies.
    const attaching = rejection(attachTo(memserver, "vm-1", waiting, true));
    await waiting.until(() => waiting.kinds.includes("recv-bitmap"));
    const deaths: string[] = [];
    using _watch = memserver.watch(
      "vm-2",
      () => undefined,
      ({ message }) => deaths.push(message),
    );
    const pid = (await memserver.pid())!;
    process.kill(pid, "SIGKILL");
    const failed = await attaching;
    expect(failed.code).toBe("MEMSERVER_FAILED");
    expect(failed.message).toBe(`The memserver (pid ${pid}) was killed by SIGKILL`);
    await waiting.until(() => waiting.left);
    await using second = await ScriptedQemu.listen([BLOCK]);
    await attachTo(memserver, "vm-2", second);
    await second.until(() => second.kinds.includes("part"));
    second.request(7);
    await second.until(() => second.pages.length === 1);
    expect(second.pages[0]!.data.equals(image.source.content(7))).toBe(true);
    expect(memserver.starts).toBe(2);
    expect(deaths).toEqual([failed.message]);
  });

  test("has its other images when one of them cannot be opened any more", async () => {
    await using memserver = newMemserver();
    const gone = imageAt("gone", [1]);
    await memserver.open(gone.hash, gone.dir);
    await memserver.open(image.hash, image.dir);
    rmSync(gone.dir, { recursive: true });
    process.kill((await memserver.pid())!, "SIGKILL");
    while ((await memserver.pid()) !== undefined) await delay(5);
    await using waiting = await ScriptedQemu.listen([BLOCK]);
    await attachTo(memserver, "vm-1", waiting);
    await waiting.until(() => waiting.kinds.includes("part"));
    // Whoever needs it hears what is the matter, and gets it when it is there again.
    const missing = await rejection(attachTo(memserver, "vm-2", waiting, false, gone.hash));
    expect(missing.message).toContain(gone.hash);
    mkdirSync(gone.dir);
    makeImage(gone.dir, PAGES, [1]);
    await using second = await ScriptedQemu.listen([BLOCK]);
    await attachTo(memserver, "vm-2", second, false, gone.hash);
    expect(memserver.starts).toBe(2);
  });

  test("is replaced when it does not answer", async () => {
    await using memserver = newMemserver(SILENCE_MS);
    await memserver.open(image.hash, image.dir);
    const pid = (await memserver.pid())!;
    await stopProcess(pid);
    const silent = await rejection(memserver.open(image.hash, image.dir));
    expect(silent.code).toBe("MEMSERVER_FAILED");
    expect(silent.message).toContain(`has not answered for ${SILENCE_MS} ms, and was killed by SIGKILL`);
    await memserver.open(image.hash, image.dir);
    expect([memserver.starts, isGone(pid)]).toEqual([2, true]);
  });

  test("is not replaced when it is this process that has not listened", async () => {
    // Says something when it is asked for a sign of life, and gives it a little later.
    const program = pretender(
      "polite",
      `echo '{"event":"ready"}'
      while read -r line; do
        id=\${line#*:}
        answer='{}'
        case $line in
          *ping*) echo '{"event":"lost","child":"vm-1","reason":""}'; sleep 0.02 ;;
          *) answer='{"image":null,"holders":[]}' ;;
        esac
        echo "{\\"id\\":\${id%%,*},\\"answer\\":$answer}"
      done`,
    );
    const silenceMs = 150;
    await using memserver = newMemserver(silenceMs);
    using _other = execPath(program);
    let stalls = 0;
    const enough = Promise.withResolvers<void>();
    using _watch = memserver.watch(
      "vm-1",
      () =>
        setTimeout(() => {
          // The answer comes in time, and lies there.
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 2 * silenceMs);
          if (++stalls === 5) enough.resolve();
        }, 0),
      enough.reject,
    );
    await memserver.find("ab".repeat(32), []);
    await enough.promise;
    expect(memserver.starts).toBe(1);
  });

  test.each([
    ["no JSON", "garbage"],
    ["no reply", '{"id":1}'],
    ["another answer", '{"id":1,"answer":{"pages":"many"}}'],
    ["an unknown event", '{"event":"party"}'],
  ])("is replaced when it says %s", async (_what, said) => {
    await using memserver = newMemserver();
    const program = pretender(
      "pretender",
      `echo '{"event":"ready"}'; read line; echo '${said}'; exec sleep 99`,
    );
    {
      using _other = execPath(program);
      const error = await rejection(memserver.open(image.hash, image.dir));
      expect(error.code).toBe("MEMSERVER_FAILED");
      expect(error.message).toContain("said what nobody understands");
    }
    await memserver.open(image.hash, image.dir);
    expect(memserver.starts).toBe(2);
  });

  test("rejects with what it has said when it does not start, and can be started later", async () => {
    await using memserver = newMemserver();
    {
      using _other = execPath(pretender("broken", "echo 'I am broken' >&2; exit 4"));
      const broken = await rejection(memserver.open(image.hash, image.dir));
      expect(broken.code).toBe("MEMSERVER_FAILED");
      expect(broken.message).toMatch(/exited with status 4: I am broken/);
    }
    {
      using _other = execPath(join(directory.path, "nothing"));
      const missing = await rejection(memserver.open(image.hash, image.dir));
      expect(missing.code).toBe("MEMSERVER_FAILED");
      expect(missing.message).toMatch(/did not start/);
    }
    await memserver.open(image.hash, image.dir);
    expect(memserver.starts).toBe(3);
  });

  test("ends while it is being started", async () => {
    await using memserver = newMemserver();
    using _other = execPath(pretender("slow", "exec sleep 99"));
    const opening = rejection(memserver.open(image.hash, image.dir));
    await delay(20);
    await memserver[Symbol.asyncDispose]();
    expect(["ABORTED", "MEMSERVER_FAILED"]).toContain((await opening).code!);
  });
});

interface Program extends AsyncDisposable {
  child: ChildProcessByStdio<Writable, Readable, Readable>;
  /** Waits for its end. */
  ended(): Promise<{ code: number | null; stderr: string }>;
  /** Has it answer a request, or an event that it says by itself. */
  say(line?: string): Promise<string>;
}

/** The program itself, with whoever speaks to it. */
function program(): Program {
  const [command, ...args] = programArgv(PROGRAM, [
    "--run",
    "/nowhere",
    "--keys",
    join(directory.path, "keys"),
  ]);
  const child = spawn(command!, args, { stdio: ["pipe", "pipe", "pipe"], cwd: "/" });
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  child.stdin.on("error", () => undefined);
  const closed = once(child, "close");
  const lines: string[] = [];
  let arrived = Promise.withResolvers<void>();
  child.stdout.setEncoding("utf8").on("data", (text: string) => {
    lines.push(...text.trimEnd().split("\n"));
    arrived.resolve();
    arrived = Promise.withResolvers();
  });
  return {
    child,
    async ended() {
      const [code] = (await closed) as [number | null];
      return { code, stderr };
    },
    async say(line) {
      if (line !== undefined) child.stdin.write(`${line}\n`);
      while (lines.length === 0) await arrived.promise;
      return lines.shift()!;
    },
    async [Symbol.asyncDispose]() {
      child.kill("SIGKILL");
      await closed;
    },
  };
}

describe("the memserver's program", () => {
  test("ends with status 5 and a reason when it is told what it does not understand", async () => {
    await using own = program();
    expect(await own.say()).toBe('{"event":"ready"}');
    expect(await own.say('{"id":1,"op":"ping"}')).toBe('{"id":1,"answer":{}}');
    own.child.stdin.write("what?\n");
    const { code, stderr } = await own.ended();
    expect(code).toBe(5);
    expect(stderr.trim()).toMatch(/^.*JSON.*$/);
  });

  test.each(["attached", "recovered"])(
    "ends with whoever started it, in the middle of a child that is being %s",
    async (how) => {
      await using own = program();
      await own.say();
      await own.say(JSON.stringify({ id: 1, op: "open", image: image.hash, dir: image.dir, holders: [] }));
      await using waiting = await ScriptedQemu.listen([BLOCK], { recovers: how === "recovered" });
      const attach = {
        ...{ id: 2, op: "attach", child: "vm-1", image: image.hash, socket: waiting.path, preempt: false },
        ...{ recover: how === "recovered", workingSet: true, measure: false },
        background: { afterMs: 1e6, bytesPerSecond: null },
      };
      own.child.stdin.write(`${JSON.stringify(attach)}\n`);
      await waiting.until(() => waiting.kinds.includes(how === "recovered" ? "recv-bitmap" : "part"));
      own.child.stdin.end();
      expect(await own.ended()).toEqual({ code: 0, stderr: "" });
      await waiting.until(() => waiting.left);
    },
  );

  test("ends when its runtime is killed", async () => {
    using _own = ownDirectories();
    await using runtime = new Script(RUNTIME, [image.hash, image.dir, join(directory.path, "keys")]);
    const pid = Number(await runtime.line());
    expect(isGone(pid)).toBe(false);
    await runtime.kill();
    await untilGone(pid);
  });
});
