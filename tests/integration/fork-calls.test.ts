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
    "do not pass on a file whose name would be two lines of what the parent is told",
    async () => {
      await using python = await pythonTree(parent);
      const out = await python.run(`
_, me, ticket, _ = c.words("fork 1")
if me != "0":
    open("/out/a\\nfile 1 b", "w").write("x")
    c.exit(0)
say(c.join(ticket))
`);
      expect(out).toContain(
        "(1, 'died', 255, 'what it left could not be passed on: A child left a file with",
      );
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

  test(
    "lose and repeat nothing of what a program prints meanwhile, and its children's go on where it was",
    async () => {
      const outputs = new Map<string, string>();
      await using python = await pythonTree(parent, {
        output: ({ vm }, _stream, chunk) => {
          outputs.set(vm, (outputs.get(vm) ?? "") + Buffer.from(chunk).toString());
        },
      });
      const counting = `
import os
i = 0
while i % 100 or not os.path.exists("/tmp/enough"):
    os.write(1, b"%d\\n" % i)
    i += 1`;
      const program = await python.root.child.agent.exec(["python3", "-c", counting]);
      const all = new Response(program.stdout).text();
      const forked = python.run(`
for n in range(4):
    _, me, ticket, _ = c.words("fork 2")
    import time
    time.sleep(0.3)
    if me != "0": c.exit(0)
    tickets = globals().setdefault("tickets", []) + [ticket]
    globals()["tickets"] = tickets
say("forked")
for ticket in tickets: c.join(ticket)
`);
      expect(await forked).toBe("forked\n");
      await python.root.child.agent.putFile("/tmp/enough", Buffer.from(""));
      const lines = (await all).split("\n").slice(0, -1);
      expect(await program.exited).toEqual({ code: 0 });
      expect(lines).toEqual(Array.from(lines, (_, i) => String(i)));
      const counted = [...outputs.values()].map((text) => text.split("\n").slice(0, -1));
      expect(counted).toHaveLength(8);
      for (const going of counted) {
        const first = Number(going[0]);
        expect(first).toBeGreaterThan(0);
        expect(going).toEqual(Array.from(going, (_, i) => String(first + i)));
      }
    },
    TEST_MS,
  );

  test(
    "keep pipes, files and timers whole that are busy meanwhile, in the parent and in its children",
    async () => {
      await using python = await pythonTree(parent);
      const out = await python.run(
        `
import hashlib, subprocess, threading, time
def busy(code): return subprocess.Popen(["python3", "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def state(name):
    try: return int(open("/tmp/" + name).read().split()[-1])
    except (OSError, IndexError, ValueError): return 0
note = "\\ndef note(name, n):\\n    open('/tmp/%s.new' % name, 'w').write(str(n)); os.rename('/tmp/%s.new' % name, '/tmp/' + name)\\n"
pipe = "import os, struct, time" + note + """
r, w = os.pipe()
if os.fork() == 0:
    i = 0
    while True:
        for _ in range(64): os.write(w, struct.pack("<Q", i)); i += 1
        time.sleep(0.005)
i = 0
while True:
    for (n,) in struct.iter_unpack("<Q", os.read(r, 8 * 512)):
        if n != i: note("pipe", -1); raise SystemExit
        i += 1
    note("pipe", i)
"""
disk = "import os, hashlib, time" + note + """
i = 0
while True:
    data = os.urandom(100000)
    with open("/tmp/data", "wb") as f: f.write(data); f.flush(); os.fsync(f.fileno())
    if hashlib.sha1(open("/tmp/data", "rb").read()).digest() != hashlib.sha1(data).digest(): note("disk", -1); raise SystemExit
    open("/usr/bin/python3", "rb").read(1 << 20)
    i += 1; note("disk", i); time.sleep(0.02)
"""
timer = "import os, time" + note + """
i, last = 0, time.monotonic()
while True:
    time.sleep(0.01)
    now = time.monotonic()
    if now < last + 0.0099: note("timer", -1); raise SystemExit
    last = now; i += 1; note("timer", i)
"""
for code in (pipe, disk, timer): busy(code)
names = ["pipe", "disk", "timer"]
def all_move():
    until, was = time.monotonic() + 40, [state(n) for n in names]
    while any(state(n) <= w for n, w in zip(names, was)):
        if time.monotonic() > until or any(state(n) < 0 for n in names): return "stuck %s" % [(n, state(n)) for n in names]
        time.sleep(0.05)
    return "moves"
said = [all_move()]
for n in range(3):
    _, me, ticket, _ = c.words("fork 2")
    if me != "0": c.exit(0, all_move())
    said.append(all_move())
    said += [child[3] for child in c.join(ticket)]
say(set(said), len(said))
os.killpg(0, 15)
`,
        100_000,
      );
      expect(out.trim()).toBe("{'moves'} 10");
    },
    TEST_MS,
  );
});
