import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
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

describe("fork calls of a program in a VM", () => {
  test(
    "give each child its id, and the parent each child once, however it ended",
    async () => {
      await using python = await pythonTree(parent);
      const out = await python.run(
        `
_, me, ticket, granted = c.words("fork 6")
if me == "1": c.exit(7, "seven")
if me == "2": os._exit(3)
if me == "3": open("/proc/sysrq-trigger", "w").write("c")
if me == "4":
    os.makedirs("/out/a b")
    open("/out/a b/x y", "w").write("left by " + c.ask("id").split(" ")[1])
    say("child 4 has printed")
    os.write(1, b"without an end of line")
    c.exit(0, "0123456789" * 100000)
if me in "56": import time; time.sleep(1000)
say(granted, c.ask("id").split(" ")[1])
first = [c.next(ticket) for _ in range(4)]
say(c.ask("kill " + ticket))
rest = c.join(ticket)
for child in sorted(first) + rest: say(*[repr(x) if i == 3 else x for i, x in enumerate(child)])
say(c.next(ticket), open("/out/t1/4/a b/x y").read())
`,
      );
      const lines = out.trim().split("\n");
      expect(lines[0]).toBe("6 0");
      expect(lines[1]).toBe("ok 2");
      expect(lines.slice(2, 8).map((line) => line.slice(0, 40))).toEqual([
        "1 exited 7 'seven' []",
        "2 exited 3 '' []",
        expect.stringMatching(/^3 died 255 'its VM has ended/),
        expect.stringMatching(/^4 exited 0 '0123456789/),
        "5 killed 255 'kill was called' []",
        "6 killed 255 'kill was called' []",
      ]);
      expect(lines[5]).toEndWith("0123456789' [(9, '/out/t1/4/a b/x y')]");
      expect(lines[5]).toHaveLength("4 exited 0 '' [(9, '/out/t1/4/a b/x y')]".length + 1_000_000);
      expect(lines[8]).toBe("None left by 4");
      expect(python.printed.get(4)).toBe("child 4 has printed\nwithout an end of line");
    },
    TEST_MS,
  );

  test(
    "say what is wrong with a call, and change nothing by it",
    async () => {
      let places = 3;
      const place = () => {
        if (places === 0) return undefined;
        places -= 1;
        return {
          [Symbol.dispose]: () => {
            places += 1;
          },
        };
      };
      await using python = await pythonTree(parent, {
        place,
        denial: (uid) => (uid === 65534 ? "nobody may not" : undefined),
      });
      const out = await python.run(`
def told(line, body=b""): say(line[:20], "->", " ".join(c.words(line, body)[:2]))
told("exit 0 0"); told("clone t9"); told("next t9"); told("create c1 t1"); told("kill"); told("ticket 2 5")
import time
time.sleep(0.2)
told("clone t1"); told("ticket 3"); told("ticket 1"); told("next t2"); told("clone t2")
if c.ask("id").split(" ")[1] != "0": c.exit(0)
told("clone t2"); told("next t2 0")
say(len(c.join("t2")))
for bad in ["", "fork", "fork 0", "fork 1001", "fork x", "ticket 1 0", "nonsense", "exit 256 0", "exit 0 1048577", "x" * 5000]:
    d = Call()
    say(repr(bad[:10]), " ".join(d.words(bad)[:2]), repr(d.answer()))
os.setuid(65534)
d = Call()
say(d.answer()[:17], repr(d.answer()))
`);
      expect(out.trim().split("\n")).toEqual([
        "exit 0 0 -> error NOT_A_CHILD",
        "clone t9 -> error TICKET_UNKNOWN",
        "next t9 -> error TICKET_UNKNOWN",
        "create c1 t1 -> error CHECKPOINT_UNKNOWN",
        "kill -> error TICKET_UNKNOWN",
        "ticket 2 5 -> ok t1",
        "clone t1 -> error TICKET_EXPIRED",
        "ticket 3 -> ok t2",
        "ticket 1 -> error TICKET_REFUSED",
        "next t2 -> error TICKET_UNKNOWN",
        "clone t2 -> ok 0",
        "clone t2 -> error TICKET_USED",
        "next t2 0 -> error JOIN_TIMEOUT",
        "3",
        ...[
          "''",
          "'fork'",
          "'fork 0'",
          "'fork 1001'",
          "'fork x'",
          "'ticket 1 0'",
          "'nonsense'",
          "'exit 256 0'",
        ].map((bad) => `${bad} error BAD_CALL ''`),
        "'exit 0 104' error BAD_CALL ''",
        "'xxxxxxxxxx' error BAD_CALL ''",
        "error FORK_DENIED ''",
      ]);
      expect(places).toBe(3);
    },
    TEST_MS,
  );

  test(
    "leave other programs' calls to the parent, and their connections usable in a child",
    async () => {
      await using python = await pythonTree(parent);
      const out = await python.run(`
idle, waiting, torn = Call(), Call(), Call()
_, _, other, _ = c.words("fork 1")
if idle.ask("id").split(" ")[1] != "0": import time; time.sleep(1000)
waiting.say("next " + other)
torn.socket.sendall(b"i")
_, me, ticket, _ = c.words("fork 2")
if me != "0":
    answers = [idle.ask("id").split(" ")[1], waiting.answer().split(" ")[1], torn.answer().split(" ")[1], repr(torn.answer()), c.ask("next " + ticket).split(" ")[1]]
    c.exit(0, " ".join(answers))
say(c.join(ticket))
torn.socket.sendall(b"d\\n")
c.ask("kill " + other)
say(torn.answer().split(" ")[1], waiting.answer().split(" ")[0:2])
`);
      expect(out.trim().split("\n")).toEqual([
        "[(1, 'exited', 0, \"1 FORKED FORKED '' TICKET_UNKNOWN\", []), (2, 'exited', 0, \"2 FORKED FORKED '' TICKET_UNKNOWN\", [])]",
        "0 ['child', '1']",
      ]);
    },
    TEST_MS,
  );

  test(
    "wake children at a checkpoint, as it was, whatever has happened since",
    async () => {
      await using python = await pythonTree(parent);
      const out = await python.run(`
value = "before"
_, me, checkpoint = c.words("checkpoint")
if me != "0": c.exit(int(me), value + " " + open("/tmp/f").read() if os.path.exists("/tmp/f") else value)
value = "after"
open("/tmp/f", "w").write("written since")
for n in (1, 2):
    _, ticket, granted, _ = c.words("ticket %d" % n)
    say(c.ask("create %s %s" % (checkpoint, ticket)), c.join(ticket))
say(value)
`);
      expect(out.trim().split("\n")).toEqual([
        "ok 1 [(1, 'exited', 1, 'before', [])]",
        "ok 2 [(1, 'exited', 1, 'before', []), (2, 'exited', 2, 'before', [])]",
        "after",
      ]);
    },
    TEST_MS,
  );

  test(
    "fork children of children, five deep, with what each has written, also more than children get for themselves",
    async () => {
      await using python = await pythonTree(parent);
      const out = await python.run(
        `
import hashlib
path, held, depth = "", [], 0
while depth < 5:
    held.append(os.urandom(20 << 20))
    was = [hashlib.sha1(h).hexdigest() for h in held]
    _, me, ticket, _ = c.words("fork 2")
    if me == "0": break
    path += me
    depth += 1
    if was != [hashlib.sha1(h).hexdigest() for h in held]: c.exit(1, "its memory has changed")
    if me == "2": c.exit(0, "leaf " + path)
    # Its own, that nobody else may see.
    held[0] = os.urandom(20 << 20)
if depth == 5: c.exit(0, "deepest " + path + " generation " + c.ask("id").split(" ")[3])
ended = c.join(ticket)
text = " | ".join(child[3] for child in ended if child[1] == "exited" and child[2] == 0)
if depth == 0: say(text)
else: c.exit(0, text)
`,
        110_000,
      );
      expect(out.trim()).toBe(
        "deepest 11111 generation 5 | leaf 11112 | leaf 1112 | leaf 112 | leaf 12 | leaf 2",
      );
    },
    TEST_MS,
  );
});
