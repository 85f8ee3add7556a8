import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { buildGuestProgram } from "../../bench/guest/build.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { pythonParent, pythonTree } from "../support/forked-trees.ts";
import { NO_TRACES, ownDirectories, SETUP_MS, TEST_MS, tracesOf } from "../support/vm.ts";

let directories: ReturnType<typeof ownDirectories>;
let host: Host;
let parent: Parent;

beforeAll(async () => {
  directories = ownDirectories();
  host = await Host.open();
  parent = await pythonParent(host);
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
  directories[Symbol.dispose]();
});

/** Runs a program in the first VM of a tree; what it prints. */
async function run(argv: readonly string[], files: Record<string, string | Uint8Array> = {}) {
  await using tree = await pythonTree(parent);
  const { agent } = tree.root.child;
  for (const [path, data] of Object.entries(files))
    await agent.putFile(path, Buffer.from(data), { mode: 0o755 });
  const { stdout, stderr, code } = await agent.run(argv, { timeoutMs: 90_000 });
  const printed = [...tree.printed.values()].join("");
  return { lines: stdout.trim().split("\n"), stderr, code, printed };
}

describe("fork calls", () => {
  test(
    "of Python do what they say, and errors have their codes",
    async () => {
      const { lines, stderr, code, printed } = await run(["python3", "/tmp/t.py"], {
        "/tmp/t.py": `
import flurry, random, os
def refused(call, *args):
    try: call(*args)
    except flurry.FlurryError as error: print(error.code)
print(flurry.vm().id, flurry.vm().parent)
refused(flurry.exit)
refused(flurry.clone, "t77")
me = flurry.fork(3)
if me.id > 0:
    os.makedirs("/out/deep")
    open("/out/deep/file of %d" % me.id, "w").write("x" * me.id)
    flurry.exit(me.id, {"me": me.id, "random": random.random()})
import json
children = flurry.join(me.ticket)
print([(c.id, c.state, c.status, json.loads(c.result)["me"], c.files) for c in children])
print(len({c.result for c in children} | {random.random()}))
id, checkpoint = flurry.checkpoint_parent()
if id > 0: flurry.exit(0, b"woken \\xff")
ticket = flurry.request_ticket(2, timeout=60)
print(flurry.create_clones(checkpoint, ticket), [c.result for c in flurry.ended(ticket)])
ticket = flurry.request_ticket(1)
if flurry.clone(ticket) > 0:
    import time; time.sleep(1000)
refused(flurry.next_child, ticket, 0)
print(flurry.kill(ticket), [c.state for c in flurry.join(ticket)], flurry.next_child(ticket))
refused(flurry.clone, ticket)
`,
      });
      // What was in the program's buffer at the fork, too, is printed by the parent alone.
      expect({ code, stderr, printed }).toEqual({ code: 0, stderr: "", printed: "" });
      expect(lines).toEqual([
        "0 None",
        "NOT_A_CHILD",
        "TICKET_UNKNOWN",
        `[${[1, 2, 3].map((i) => `(${i}, 'exited', ${i}, ${i}, ['/out/t1/${i}/deep/file of ${i}'])`).join(", ")}]`,
        "4",
        "2 [b'woken \\xff', b'woken \\xff']",
        "JOIN_TIMEOUT",
        "1 ['killed'] None",
        "TICKET_USED",
      ]);
    },
    TEST_MS,
  );

  test(
    "of C do what they say",
    async () => {
      const program = await buildGuestProgram(join(import.meta.dirname, "../support/fork-calls-c.c"));
      const { lines, stderr, code } = await run(["/tmp/t"], { "/tmp/t": program });
      expect({ lines, stderr, code }).toEqual({
        lines: ["joined 3 seen e", "woken woken woken", "good"],
        stderr: "",
        code: 0,
      });
    },
    TEST_MS,
  );

  test(
    "of a shell do what they say, also in a pipeline of theirs",
    async () => {
      const { lines, stderr, code } = await run(["sh", "/tmp/t.sh"], {
        "/tmp/t.sh": `
ls /usr/lib/libflurry.a /usr/include/flurry.h /usr/include/flurry_fork.h
flurry id | cut -d' ' -f1,3,4
flurry exit 1; echo "refused $?"
flurry fork 0; echo "usage $?"
split() { flurry fork "$1"; }
id=$(split 3)
if [ "$id" -gt 0 ]; then
  mkdir -p /out; echo "part $id" > /out/part
  if [ "$id" = 3 ]; then exit 5; fi
  echo "result of $id" | flurry exit "$id" --result-file -
fi
flurry join --results; echo "joined $?"
cat /out/t1/*/part
id=$(flurry fork 2)
[ "$id" = 0 ] || flurry exit 0 --result 'a "quoted" one'
flurry join --json | sed 's/vm-[0-9a-f]*/vm/'; echo "joined $?"
set -- $(flurry checkpoint)
[ "$1" = 0 ] || flurry exit 0 --result woken
name=$(flurry ticket 1); echo "$name"
flurry create "$2"; flurry next --results; flurry next; echo "none $?"
flurry ticket 1 > /dev/null
[ "$(flurry clone)" = 0 ] || sleep 1000
flurry next --wait 0; echo "late $?"; flurry kill; flurry join; echo "joined $?"
`,
      });
      expect(code).toBe(0);
      expect(lines).toEqual([
        ...["/usr/include/flurry.h", "/usr/include/flurry_fork.h", "/usr/lib/libflurry.a"],
        "0 0 -",
        "refused 3",
        "usage 2",
        ...["1 exited 1", "result of 1", "2 exited 2", "result of 2", "3 exited 5", "joined 1"],
        ...["part 1", "part 2", "part 3"],
        ...[1, 2].map(
          (id) =>
            `{"id":${id},"vm":"vm","state":"exited","status":0,"result":"a \\"quoted\\" one","files":[]}`,
        ),
        "joined 0",
        "t3 1",
        ...["1", "1 exited 0", "woken", "none 1"],
        ...["late 3", "1", "1 killed 255", "joined 1"],
      ]);
      expect(stderr).toContain("flurry: NOT_A_CHILD: ");
      expect(stderr).toContain("flurry: JOIN_TIMEOUT: ");
      expect(stderr).toContain("usage: flurry fork N");
    },
    TEST_MS,
  );

  test(
    "of several VMs at once give a hundred children their ids, each of them once",
    async () => {
      const program = await buildGuestProgram(join(import.meta.dirname, "../support/fork-calls-many.c"));
      const python = `
import flurry, json
me = flurry.fork(34)
if me.id > 0: flurry.exit(0, "%d %d" % (me.id, flurry.vm().id))
print("\\n".join(c.result.decode() for c in flurry.join(me.ticket)))`;
      const shell = `
id=$(flurry fork 34)
[ "$id" = 0 ] || flurry exit 0 --result "$id $(flurry id | cut -d' ' -f1)"
flurry join --results | grep -v exited`;
      const all = await Promise.all([
        run(["python3", "-c", python]),
        run(["sh", "-c", shell]),
        run(["/tmp/t", "34"], { "/tmp/t": program }),
      ]);
      const expected = Array.from({ length: 34 }, (_, i) => `${i + 1} ${i + 1}`).sort();
      for (const { lines, stderr, code } of all) {
        expect({ lines: lines.sort(), stderr, code }).toEqual({ lines: expected, stderr: "", code: 0 });
      }
    },
    TEST_MS,
  );
});
