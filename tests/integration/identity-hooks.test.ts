import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import { buildGuestProgram } from "../../bench/guest/build.ts";
import { buildImage } from "../../guest-agent/image/mod.ts";
import { openParent } from "../../runtime/fork/open-parent.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory } from "../support/vm.ts";
import { homeWithImages } from "../support/workers-runtime.ts";

const CHILDREN = 3;
/** Programs of the parent that draw random numbers without end, one a line, and say when they were forked. */
const PYTHON = `
import flurry, random, tempfile, time, uuid
random.seed(1)
file = open("/run/python.draws", "a", buffering=1)
name = next(tempfile._get_candidate_names())
file.write("%s\\n" % uuid.uuid1())

@flurry.on_fork
def forked(fork):
    file.write("forked %s %d\\n" % (fork.vm, fork.index))
    file.write("%s\\n%s\\n" % (next(tempfile._get_candidate_names()), uuid.uuid1()))

while True:
    file.write("%r\\n" % random.random())
    time.sleep(0.002)
`;
const START = `
python3 /opt/draws.py </dev/null >/run/python.errors 2>&1 &
/opt/draws-c /run/c.draws </dev/null >/run/c.errors 2>&1 &
until [ -s /run/python.draws ] && [ "$(wc -l </run/python.draws)" -gt 20 ] && [ -s /run/c.draws ]; do
  kill -0 $! || exit 1
  sleep 0.1
done`;

let home: TemporaryDirectory;
let host: Host;
let parent: Parent;

beforeAll(async () => {
  home = await homeWithImages();
  host = await Host.open({ home: home.path });
  const program = await buildGuestProgram(join(import.meta.dirname, "../support/fork-hook-draws.c"));
  const image = await buildImage("python", { home: flurryHome() });
  ({ parent } = await openParent({
    ...{ host, image, memMiB: 256 },
    files: [
      { path: "/opt/draws.py", data: Buffer.from(PYTHON), mode: 0o644 },
      { path: "/opt/draws-c", data: program, mode: 0o755 },
    ],
    warmUp: { argv: ["/bin/sh", "-c", START] },
  }));
}, SETUP_MS);

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
  home[Symbol.dispose]();
}, TEST_MS);

/** What a program had drawn before the fork, what it said of it, and what it has drawn since. */
interface Draws {
  before: string[];
  mark: string;
  after: string[];
}

async function drawsOf(child: Awaited<ReturnType<Parent["fork"]>>, program: string): Promise<Draws> {
  // Lines come all the time; the file is waited for in the guest.
  const wait = `until [ "$(sed -n '/^forked/,$p' /run/${program}.draws | wc -l)" -gt 12 ]; do sleep 0.02; done
    cat /run/${program}.draws`;
  const { stdout, stderr } = await child.agent.run(["/bin/sh", "-c", wait], { timeoutMs: TEST_MS / 2 });
  expect(stderr).toBe("");
  const lines = stdout.trimEnd().split("\n");
  const at = lines.findIndex((line) => line.startsWith("forked"));
  return { before: lines.slice(0, at), mark: lines[at]!, after: lines.slice(at + 1, at + 12) };
}

test(
  "programs with a fork hook draw nothing between the freeze and their renewal, and different numbers after it",
  async () => {
    expect(parent.descriptor.hooks).toBe(2);
    const seen: { python: Draws; c: Draws; id: string }[] = [];
    for (let index = 0; index < CHILDREN; index++) {
      await using child = await parent.fork({ identity: { index, hostname: `draws-${index}` } });
      expect(child.proof.read.hooks.map(({ name, ok }) => [name, ok]).sort()).toEqual([
        ["draws-c", true],
        ["python", true],
      ]);
      seen.push({
        python: await drawsOf(child, "python"),
        c: await drawsOf(child, "c"),
        id: child.id,
      });
    }
    for (const program of ["python", "c"] as const) {
      expect(seen.map((child) => child[program].mark)).toEqual(
        seen.map(({ id }, index) => `forked ${id} ${index}`),
      );
      // All of them were forked at the same line.
      for (const child of seen) expect(child[program].before).toEqual(seen[0]![program].before);
      const drawn = seen.flatMap((child) => child[program].after);
      expect(new Set(drawn).size).toBe(drawn.length);
    }
  },
  TEST_MS,
);
