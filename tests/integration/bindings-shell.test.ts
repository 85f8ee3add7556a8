import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { Bindings } from "../support/bindings.ts";
import { type ScriptedAnswer, ScriptedCalls, type ScriptedRequest } from "../support/scripted-calls.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

let directory: TemporaryDirectory;
let bindings: Bindings;
let sockets = 0;

beforeAll(async () => {
  directory = temporaryDirectory();
  bindings = await Bindings.build(directory.path);
}, 60_000);

afterAll(() => directory[Symbol.dispose]());

/** A host that grants all: tickets t1, t2, ... with one child each, which has ended. */
function granting(): (request: ScriptedRequest) => ScriptedAnswer {
  let names = 0;
  const told = new Set<string>();
  return ({ line }) => {
    const [verb, one = ""] = line.split(" ");
    if (verb === "fork") return [`ok 0 t${++names} 1\n`];
    if (verb === "ticket") return [`ok t${++names} 1 600000\n`];
    if (verb === "kill" || verb === "create") return ["ok 1\n"];
    if (verb === "clone") return ["ok 0 1\n"];
    if (verb === "checkpoint") return ["ok 0 c1\n"];
    if (verb === "next") return [told.has(one) ? "end\n" : `child 1 v${told.add(one).size} exited 0 0 0\n`];
    return ["error NOT_A_CHILD nobody has forked this VM\n"];
  };
}

/** What a script comes to, and what the host was asked. */
async function script(
  shell: string,
  text: string,
  answer: (request: ScriptedRequest) => ScriptedAnswer = granting(),
  input = "",
) {
  sockets += 1;
  const socket = join(directory.path, `s${sockets}`);
  const path = join(directory.path, `script${sockets}`);
  writeFileSync(path, text);
  await using host = await ScriptedCalls.listen(socket, { answer });
  const ran = await bindings.run([shell, path], socket, input);
  return { ...ran, lines: ran.stdout.split("\n").slice(0, -1), asked: host.requests };
}

describe("flurry of a shell", () => {
  for (const shell of ["dash", "bash"]) {
    test(`remembers the last ticket of its shell: ${shell}`, async () => {
      const { lines, asked, stderr } = await script(
        shell,
        `id=$(flurry fork 1); flurry kill               # t1
split() { flurry fork 1 | cat; }
id=$(split); [ "$id" = 0 ] && flurry kill               # t2, made in a subshell of a subshell
(flurry fork 1 > /dev/null; flurry kill) | cat          # t3, in a subshell
out=$(flurry kill; echo)                                # it was the last one
flurry ticket 1 | cat; flurry clone; flurry create c9   # t4
${shell} -c 'flurry kill; echo $?; flurry ticket 1; flurry kill'   # another shell has none, then t5
flurry kill; flurry kill t1                             # t4 still`,
      );
      expect(asked.map(({ line }) => line)).toEqual([
        ...["fork 1", "kill t1", "fork 1", "kill t2", "fork 1", "kill t3", "kill t3"],
        ...["ticket 1", "clone t4", "create c9 t4", "ticket 1", "kill t5", "kill t4", "kill t1"],
      ]);
      expect(lines).toEqual(["1", "1", "1", "t4 1", "0", "1", "3", "t5 1", "1", "1", "1"]);
      expect(stderr).toBe("flurry: TICKET_UNKNOWN: this shell has no ticket yet; name one\n");
    });
  }

  test("shells at the same time have tickets of their own", async () => {
    const { asked } = await script(
      "dash",
      `for i in 1 2 3 4 5 6 7 8; do ( flurry ticket 1 | { read -r name granted; flurry kill "$name"; flurry clone; } ) & done; wait`,
    );
    const named = (verb: string) =>
      asked.filter(({ line }) => line.startsWith(`${verb} `)).map(({ line }) => line.split(" ")[1]);
    expect(new Set(named("kill")).size).toBe(8);
    expect(named("clone").length).toBe(8);
  });

  test("shows children by id as lines, with results, and as JSON of any bytes", async () => {
    const told = () => {
      const left = [
        "child 3 v3 exited 0 3 0\n\xff\x00a",
        'child 1 v1 exited 4 15 2\na "b"\\\n\x01\xc3\xbc\xf0\x9f\x90\xa6cfile 5 /out/t1/1/a b\nfile 0 /out/t1/1/\xff"\n',
        "child 2 - failed 255 2 0\nno",
        "end\n",
      ];
      return () => [Buffer.from(left.shift() ?? "end\n", "latin1")];
    };
    const plain = await script("dash", "flurry join t1; echo $?", told());
    expect(plain.lines).toEqual(["1 exited 4", "2 failed 255", "3 exited 0", "1"]);
    const results = await script("dash", "flurry join t1 --results", told());
    expect(results.stdout).toBe(
      '1 exited 4\na "b"\\\n\x01\xc3\xbc\xf0\x9f\x90\xa6c\n2 failed 255\nno\n3 exited 0\n\xff\0a\n',
    );
    const json = await script("dash", "flurry next t1 --json; flurry join --json t1", told());
    const children = json.lines.map((line) => JSON.parse(Buffer.from(line, "latin1").toString()));
    expect(children).toEqual([
      { id: 3, vm: "v3", state: "exited", status: 0, result: null, resultBase64: "/wBh", files: [] },
      {
        ...{ id: 1, vm: "v1", state: "exited", status: 4, result: 'a "b"\\\n\x01ü🐦c' },
        files: ["/out/t1/1/a b", '/out/t1/1/\ufffd"'],
      },
      { id: 2, vm: "-", state: "failed", status: 255, result: "no", files: [] },
    ]);
  });

  test("exits with a text, a file or its input as the result, and says what it cannot read", async () => {
    const { lines, stderr, asked } = await script(
      "dash",
      `flurry exit; flurry exit 7 --result 'a b'; printf 'x\\000y' > "$TMPDIR/f"; flurry exit --result-file "$TMPDIR/f" 9
flurry exit 255 --result-file -; flurry exit --result-file /none; echo $?; flurry exit --result-file /; echo $?
head -c 1048577 /dev/zero | flurry exit --result-file -; echo $?`,
      granting(),
      "from \xff its input",
    );
    expect(asked.map(({ line, body }) => [line, body.toString("latin1")])).toEqual([
      ["exit 0 0", ""],
      ["exit 7 3", "a b"],
      ["exit 9 3", "x\0y"],
      ["exit 255 16", "from \xff its input"],
    ]);
    expect(lines).toEqual(["3", "3", "3"]);
    expect(stderr.split("\n").slice(4, -1)).toEqual([
      "flurry: cannot read /none: No such file or directory",
      "flurry: cannot read /: Is a directory",
      "flurry: BAD_CALL: a result has at most 1048576 bytes",
    ]);
  });

  test("helps, refuses what it does not know, and says so when nobody reads it", async () => {
    const { stdout, lines, stderr, asked } = await script(
      "dash",
      `flurry --help | head -n 1; flurry fork --help | head -n 1
for args in "" fork "fork 0" "fork x" "fork 1 2" "ticket 1 --expires 0" "exit 256" "exit 1 2" "next t1 --wait x" "id 1" "tell" "fork 1 --jso"; do
  flurry $args 2> /dev/null; printf '%s ' $?
done; echo
flurry ticket 1 > /dev/full; echo $?`,
    );
    expect(lines.slice(0, 2)).toEqual(
      Array<string>(2).fill(
        "usage: flurry fork N | ticket N [--expires SECONDS] | clone [TICKET] | checkpoint",
      ),
    );
    expect(stdout).toContain(`\n${"2 ".repeat(12)}\n3\n`);
    expect(stderr).toBe("flurry: cannot write: No space left on device\n");
    expect(asked.length).toBe(1);
  });
});
