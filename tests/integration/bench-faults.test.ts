import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync, readSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { buildGuestProgram, FAULTS_SOURCE } from "../../bench/guest/build.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { rejection } from "../support/agent-peer.ts";
import { baseParent, SETUP_MS, TEST_MS, temporaryDirectory } from "../support/vm.ts";

const MIB = 16;
const PAGES = MIB * 256;
const PROGRAM = "/opt/faults";

interface Touched {
  count: number;
  wrong: number;
  p50ns: number;
  p99ns: number;
  maxNs: number;
  totalNs: number;
  overheadNs: number;
}

function expectTouched(touched: Touched, count: number): void {
  expect(touched).toMatchObject({ count, wrong: 0 });
  const { p50ns, p99ns, maxNs, totalNs, overheadNs } = touched;
  expect(overheadNs).toBeGreaterThan(0);
  expect(p50ns).toBeGreaterThan(0);
  expect(p99ns).toBeGreaterThanOrEqual(p50ns);
  expect(maxNs).toBeGreaterThanOrEqual(p99ns);
  expect(totalNs).toBeGreaterThanOrEqual(maxNs);
  expect(totalNs).toBeLessThanOrEqual(maxNs * count);
}

describe("faults in a VM", () => {
  let host: Host;
  let parent: Parent;

  beforeAll(async () => {
    host = await Host.open();
    const data = await buildGuestProgram(FAULTS_SOURCE);
    parent = await baseParent(host, {
      files: [{ path: PROGRAM, data, mode: 0o755 }],
      warmUp: { argv: [PROGRAM, "start", String(MIB), "7"] },
    });
  }, SETUP_MS);

  afterAll(async () => {
    await parent[Symbol.asyncDispose]();
    await host[Symbol.asyncDispose]();
  });

  test(
    "finds in a child the memory that it filled in the parent, and times it",
    async () => {
      await using child = await parent.fork({ identity: { index: 0, hostname: "faults" } });
      const faults = async (...args: string[]) => {
        const { code, stdout, stderr } = await child.agent.run([PROGRAM, ...args]);
        expect([code, stderr]).toEqual([0, ""]);
        return JSON.parse(stdout);
      };
      expectTouched(await faults("touch", "1000", "1"), 1000);
      expectTouched(await faults("touch", String(PAGES), "2"), PAGES);
      expect(await faults("sum")).toEqual({ pages: PAGES, wrong: 0 });
      const refused = await child.agent.run([PROGRAM, "touch", String(PAGES + 1), "1"]);
      expect(refused).toMatchObject({ code: 1, stdout: "", stderr: `error: there are ${PAGES} pages\n` });
    },
    TEST_MS,
  );
});

/** The program on this machine: it is static, and only its socket would be in the way. */
async function faultsHere(): Promise<{ faults: (...args: string[]) => string; pid: number } & Disposable> {
  using stack = new DisposableStack();
  const { path: directory } = stack.use(temporaryDirectory());
  const program = join(directory, "faults");
  writeFileSync(program, await buildGuestProgram(FAULTS_SOURCE), { mode: 0o755 });
  const env = { ...process.env, FAULTS_SOCKET: join(directory, "socket") };
  const faults = (...args: string[]) => {
    const { status, stdout, stderr } = spawnSync(program, args, { encoding: "utf8", env });
    if (status !== 0) throw new Error(`Status ${status}: ${stderr}`);
    return stdout;
  };
  faults("start", String(MIB), "7");
  const pids = processesOf(directory);
  for (const pid of pids) stack.defer(() => process.kill(pid, "SIGKILL"));
  expect(pids).toHaveLength(1);
  const owned = stack.move();
  return { faults, pid: pids[0]!, [Symbol.dispose]: () => owned.dispose() };
}

/** The anonymous mapping that is as large as the program's memory. */
function memoryOf(pid: number): { fd: number; offset: number } & Disposable {
  const ranges = readFileSync(`/proc/${pid}/maps`, "utf8")
    .split("\n")
    .map((line) => line.split(/[- ]/).slice(0, 2))
    .map(([from, to]) => ({ from: Number.parseInt(from!, 16), to: Number.parseInt(to ?? "0", 16) }));
  // The kernel may have joined it to a small one.
  const range = ranges.find(({ from, to }) => to - from >= PAGES * 4096)!;
  const fd = openSync(`/proc/${pid}/mem`, "r+");
  return { fd, offset: range.from, [Symbol.dispose]: () => closeSync(fd) };
}

describe("faults", () => {
  test("fills every page with bytes that do not compress and are no other page's", async () => {
    using here = await faultsHere();
    using memory = memoryOf(here.pid);
    const content = Buffer.alloc(PAGES * 4096);
    expect(readSync(memory.fd, content, 0, content.length, memory.offset)).toBe(content.length);
    expect(Bun.zstdCompressSync(content).length).toBeGreaterThan(content.length * 0.95);
    const pages = new Set<bigint | number>();
    for (let at = 0; at < content.length; at += 4096) pages.add(Bun.hash(content.subarray(at, at + 4096)));
    expect(pages.size).toBe(PAGES);
  });

  test("counts what is wrong, page by page", async () => {
    using here = await faultsHere();
    using memory = memoryOf(here.pid);
    const damaged = [0, 1, 100, PAGES - 1];
    for (const page of damaged)
      writeSync(memory.fd, Buffer.alloc(4096), 0, 4096, memory.offset + page * 4096);
    expect(JSON.parse(here.faults("sum"))).toEqual({ pages: PAGES, wrong: damaged.length });
    // All pages once each, in any order, have all of the damage.
    for (const seed of ["0", "1", "18446744073709551615"]) {
      const touched = JSON.parse(here.faults("touch", String(PAGES), seed));
      expect(touched).toMatchObject({ count: PAGES, wrong: damaged.length });
    }
    writeSync(memory.fd, Buffer.of(0x55), 0, 1, memory.offset + 7 * 4096 + 4095);
    expect(JSON.parse(here.faults("sum"))).toEqual({ pages: PAGES, wrong: damaged.length + 1 });
  });

  test("refuses what it does not know", async () => {
    using here = await faultsHere();
    for (const args of [
      [],
      ["touch"],
      ["touch", "x", "1"],
      ["touch", "-1", "1"],
      ["start", "0", "1"],
      ["more"],
    ]) {
      expect(() => here.faults(...args)).toThrow("Status 2: usage");
    }
    expect(() => here.faults("touch", "0", "1")).toThrow("Status 1: error: there are 4096 pages");
    expect(JSON.parse(here.faults("sum"))).toEqual({ pages: PAGES, wrong: 0 });
  });
});

describe("buildGuestProgram()", () => {
  test("builds once for each content, and leaves nothing of what does not compile", async () => {
    using directory = temporaryDirectory();
    const source = join(directory.path, "small.c");
    const cacheDir = join(directory.path, "cache");
    writeFileSync(source, "int main(void) { return 3; }\n");
    const [first, second] = await Promise.all([1, 2].map(() => buildGuestProgram(source, { cacheDir })));
    expect(first!.equals(second!)).toBe(true);
    expect(readdirSync(cacheDir)).toHaveLength(1);
    writeFileSync(source, "int main(void) { return 4; }\n");
    await buildGuestProgram(source, { cacheDir });
    writeFileSync(source, "int main(void) { return nothing; }\n");
    const error = await rejection(buildGuestProgram(source, { cacheDir }));
    expect(error.code).toBe("INTERNAL");
    expect(error.message).toContain("nothing");
    expect(readdirSync(cacheDir)).toHaveLength(2);
    const aborted = rejection(buildGuestProgram(source, { cacheDir, signal: AbortSignal.abort() }));
    expect((await aborted).code).toBe("ABORTED");
  });
});
