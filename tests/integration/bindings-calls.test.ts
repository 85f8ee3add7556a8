import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { dirname, join } from "node:path";
import { buildGuestTools } from "../../guest-agent/bindings/build.ts";
import { type Binding, Bindings } from "../support/bindings.ts";
import {
  CUT,
  END,
  type ScriptedAnswer,
  ScriptedCalls,
  type ScriptedRequest,
} from "../support/scripted-calls.ts";
import { type TemporaryDirectory, temporaryDirectory } from "../support/vm.ts";

const LANGUAGES: Binding[] = ["C", "Python", "TypeScript"];
const CODES = [
  ...["FORK_DENIED", "TICKET_REFUSED", "TICKET_UNKNOWN", "TICKET_EXPIRED", "TICKET_USED"],
  ...["CHECKPOINT_UNKNOWN", "FORK_FAILED", "FORKED", "NOT_A_CHILD", "JOIN_TIMEOUT", "NO_HOST"],
];

let directory: TemporaryDirectory;
let bindings: Bindings;

beforeAll(async () => {
  directory = temporaryDirectory();
  bindings = await Bindings.build(directory.path);
}, 60_000);

afterAll(() => directory[Symbol.dispose]());

let sockets = 0;

function newSocket(): string {
  sockets += 1;
  return join(directory.path, `s${sockets}`);
}

/** What a binding prints of commands that are answered by a script, and what it has asked. */
async function talk(
  binding: Binding,
  commands: readonly string[],
  answer: (request: ScriptedRequest) => ScriptedAnswer,
  script: Omit<Parameters<typeof ScriptedCalls.listen>[1], "answer"> = {},
) {
  const socket = newSocket();
  await using host = await ScriptedCalls.listen(socket, { answer, ...script });
  const lines = await bindings.call(binding, socket, commands);
  return { lines, asked: host.requests.map(({ line }) => line), host };
}

/** Each byte alone. */
function bytewise(text: string): Uint8Array[] {
  return [...Buffer.from(text, "latin1")].map((byte) => Uint8Array.of(byte));
}

for (const binding of LANGUAGES) {
  describe(`fork calls of ${binding}`, () => {
    test("say and understand every verb, of whatever pieces the answer comes in", async () => {
      const answers: Record<string, string> = {
        "ticket 8": "ok t1 3 600000\n",
        "ticket 8 5000": "ok t2 8 5000\n",
        "clone t1": "ok 2 3\n",
        "fork 4": "ok 0 t3 4\n",
        checkpoint: "ok 0 c1\n",
        "create c1 t2": "ok 8\n",
        "next t3 250": "child 7 vm-a exited 9 3 2\n\n\xff\0file 4 /out/t3/7/a b\nfile 0 /out/t3/7/\xc3\xbc\n",
        "next t3": "child 1 vm-b killed 255 0 0\n",
        "kill t3": "ok 2\n",
        id: "ok 2 vm-c 3 vm-p\n",
      };
      const commands = [...Object.keys(answers)];
      const { lines, asked } = await talk(binding, commands, ({ line }) => bytewise(answers[line]!));
      expect(asked).toEqual(commands);
      const files = `/out/t3/7/a b|/out/t3/7/${binding === "TypeScript" ? "ü" : "\xc3\xbc"}`;
      expect(lines.map((line) => Buffer.from(line, "latin1").toString("latin1"))).toEqual([
        ...["t1 3", "t2 8", "2", "0 t3 4", "0 c1", "8"],
        `7 vm-a exited 9 0aff00|${binding === "TypeScript" ? Buffer.from(files).toString("latin1") : files}`,
        ...["1 vm-b killed 255 ", "2", "2 vm-c 3 vm-p"],
      ]);
    });

    test("join until the end, in whatever order children end", async () => {
      const left = ["child 2 v2 died 255 3 0\nwhy", "child 1 - failed 255 0 0\n", "end\n"];
      const { lines } = await talk(binding, ["join t1", "next t1"], () => [left.shift() ?? "end\n"]);
      const children = ["2 v2 died 255 776879", "1 - failed 255 "];
      // C tells of them as they came.
      expect(lines).toEqual(["joined 2", ...(binding === "C" ? children : children.toReversed()), "end"]);
    });

    test("have each error's code, and go on after it", async () => {
      const commands = CODES.map((code) => `clone ${code.toLowerCase().replaceAll("_", "0")}`);
      const { lines, host } = await talk(binding, [...commands, "id"], ({ line }) => {
        const at = commands.indexOf(line);
        return [at >= 0 ? `error ${CODES[at]} a text of words\n` : "ok 0 vm 0 -\n"];
      });
      expect(lines).toEqual([...CODES.map((code) => `error ${code}`), "0 vm 0 -"]);
      // After FORK_DENIED and FORKED the host may end it.
      if (binding !== "TypeScript") expect(host.connections).toBe(3);
    });

    test("begin anew when the host has ended a call", async () => {
      const { lines, host } = await talk(
        binding,
        ["id", "kill t1", "id", "kill t2", "id", "checkpoint", "id"],
        ({ line }) => {
          if (line === "kill t1") return ["error BAD_CALL no\n", END];
          if (line === "kill t2") return [CUT];
          if (line === "checkpoint") return ["ok 0 c", END];
          return ["ok 0 vm 0 -\n"];
        },
      );
      const id = "0 vm 0 -";
      expect(lines).toEqual([id, "error BAD_CALL", id, "error NO_HOST", id, "error NO_HOST", id]);
      if (binding !== "TypeScript") expect(host.connections).toBe(4);
    });

    test("take no answer that makes no sense", async () => {
      const lies: Record<string, (string | typeof END)[]> = {
        "ticket 3": [
          "ok t1 0 600000\n",
          "ok t1 4 600000\n",
          "ok t1 3\n",
          "ok T1 3 1\n",
          "ok t1 -3 1\n",
          "yes\n",
        ],
        "clone t1": [
          "ok\n",
          "ok x 3\n",
          "ok 4 3\n",
          "ok 1 3 5\n",
          "ok 99999999999999999999 3\n",
          "\n",
          "ok 1\x003\n",
        ],
        "fork 3": ["ok 0 3 t1\n", `ok 0 ${"t".repeat(33)} 3\n`, "ok 4 t1 3\n", "child 1 v exited 0 0 0\n"],
        checkpoint: [`ok 0 ${"c".repeat(33)}\n`, "ok 0\n", "ok  0 c1\n"],
        "create c1 t1": ["ok many\n", "end\n"],
        "next t1": [
          ...[
            "ok 0\n",
            "child 1 v asleep 0 0 0\n",
            "child 1 v exited 256 0 0\n",
            "child 1 v exited -1 0 0\n",
          ],
          ...["child 1 v exited 0 1048577 0\n", "child 1 v exited 0 -1 0\n", "child 1 v exited 0 0 100001\n"],
          ...["child 1 v exited 0 2 1\nabfile x /a\n", "child 1 v exited 0 0 1\nend\n"],
          ...["child 1 v exited 0 0 1\nfile 3 out\n", "child 1 v exited 0 0 1\nfile -3 /out\n"],
        ],
        id: ["ok 0 vm 0\n", "ok 0 vm zero -\n", "x".repeat(200_000)],
      };
      const asked = Object.entries(lies).flatMap(([line, answers]) => answers.map(() => line));
      const answers = Object.values(lies).flat();
      const { lines } = await talk(binding, asked, () => [answers.shift()!]);
      expect(lines).toEqual(asked.map(() => "error BAD_ANSWER"));
    });

    test("carry results of any bytes, up to 1 MiB, both ways", async () => {
      const bytes = Buffer.alloc(
        1024 * 1024,
        Uint8Array.from({ length: 256 }, (_, i) => i),
      );
      const { lines, host } = await talk(
        binding,
        ["next t1", "exit 7 *1048576", "exit 0 *1048577"],
        ({ line }) =>
          line.startsWith("next")
            ? [`child 1 v exited 0 ${bytes.length} 0\n`, bytes.subarray(0, 70_001), bytes.subarray(70_001)]
            : ["error NOT_A_CHILD no\n"],
      );
      expect(lines[0] === `1 v exited 0 ${bytes.toString("hex")}`).toBe(true);
      expect(lines.slice(1)).toEqual(["error NOT_A_CHILD", "error BAD_CALL"]);
      expect(host.requests.length).toBe(2);
      expect(host.requests[1]!.body.equals(Buffer.alloc(1024 * 1024, "x"))).toBe(true);
    });

    test("know why they were refused before they could ask", async () => {
      // What was cut off while it was written to is lost to node:net; the agent does not do so.
      for (const end of binding === "TypeScript" ? [END] : [END, CUT]) {
        const greeting: ScriptedAnswer = ["error FORK_DENIED not you\n", end];
        const denied = await talk(binding, ["fork 1", "fork 2"], () => undefined, { greeting });
        expect(denied.lines).toEqual(["error FORK_DENIED", "error FORK_DENIED"]);
        const answer: ScriptedAnswer = ["error FORKED gone on\n", end];
        const forked = await talk(binding, ["exit 0 *1000000"], () => answer, { readsNoBodies: true });
        expect(forked.lines).toEqual(["error FORKED"]);
      }
    });

    test("put nothing into a line that is no name", async () => {
      const names = ["T1", "", "t1\nkill", "ü", "t".repeat(33), "t-1"];
      const commands = names.flatMap((name) => [
        `clone ${name}`,
        `kill ${name}`,
        `create ${name} t1`,
        `next ${name}`,
      ]);
      const { lines, asked } = await talk(binding, commands, () => ["ok 1 1\n"]);
      expect(lines).toEqual(commands.map(() => "error BAD_CALL"));
      expect(asked).toEqual([]);
    });

    test("wait for as long as it takes, whatever signals come", async () => {
      const socket = newSocket();
      await using host = await ScriptedCalls.listen(socket, {
        answer: ({ line }) => (line === "id" ? ["ok 0 vm 0 -\n"] : undefined),
      });
      const lines = bindings.call(binding, socket, ["fork 2", "id"]);
      await host.heard(1);
      await Bun.sleep(300); // so many signals
      // The call that forks is still waited for; a host that goes away ends it.
      expect(host.requests.map(({ line }) => line)).toEqual(["fork 2"]);
      host.hangUp();
      expect(await lines).toEqual(["error NO_HOST", "0 vm 0 -"]);
    });

    test("have no host where there is no VM", async () => {
      const nowhere = join(directory.path, "none");
      const tooLong = join(directory.path, "x".repeat(120));
      expect(await bindings.call(binding, nowhere, ["fork 2", "id", "exit 0"])).toEqual(
        Array<string>(3).fill("error NO_HOST"),
      );
      expect(await bindings.call(binding, tooLong, ["id"])).toEqual(["error NO_HOST"]);
    });
  });
}

for (const binding of ["C", "Python"] as const) {
  test(`a process that fork(2) has made in ${binding} has a conversation of its own, and its parent keeps the old one`, async () => {
    const { lines, host } = await talk(binding, ["id", "process id", "id"], ({ connection }) => [
      `ok ${connection} vm 0 -\n`,
    ]);
    expect(lines).toEqual(["1 vm 0 -", "2 vm 0 -", "1 vm 0 -"]);
    expect(host.requests.length).toBe(3);
  });
}

test("a signal handler of Python has no call in the middle of another one, and may break that off", async () => {
  const socket = newSocket();
  await using host = await ScriptedCalls.listen(socket, {
    answer: ({ line }) => (line === "id" ? ["ok 0 vm 0 -\n"] : undefined),
  });
  const program = `
import flurry, signal
def handler(*_):
    try: flurry.vm()
    except flurry.FlurryError as error: print(error.code)
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.05)
try: flurry.join("t1")
except KeyboardInterrupt: print("interrupted", flurry.vm().vm)`;
  expect(await bindings.run(["python3", "-B", "-c", program], socket)).toEqual({
    ...{ stdout: "BAD_CALL\ninterrupted vm\n", stderr: "", code: 0 },
  });
  expect(host.requests.map(({ line, connection }) => [line, connection])).toEqual([
    ["next t1", 1],
    ["id", 2],
  ]);
});

test("a call of TypeScript may be given up, and has ended its connection then", async () => {
  const { lines, host } = await talk("TypeScript", ["abort t1", "id"], ({ line }) =>
    line === "id" ? ["ok 0 vm 0 -\n"] : undefined,
  );
  expect(lines).toEqual(["error ABORTED", "0 vm 0 -"]);
  expect(host.connections).toBe(2);
});

test("the library of images, made with musl, is of use to programs of Debian's C library", async () => {
  const { files } = await buildGuestTools(join(directory.path, "tools"));
  const from = (to: string) => files.find((file) => file.to === to)!.from;
  const built = await bindings.run(
    [
      ...["gcc", "-Wall", "-Werror", "-D_GNU_SOURCE", "-o", join(directory.path, "linked")],
      ...[
        join(import.meta.dirname, "../support/calls-driver.c"),
        "-I",
        dirname(from("/usr/include/flurry.h")),
      ],
      ...["-L", dirname(from("/usr/lib/libflurry.a")), "-lflurry"],
    ],
    "",
  );
  expect(built).toEqual({ stdout: "", stderr: "", code: 0 });
  const socket = newSocket();
  await using _host = await ScriptedCalls.listen(socket, {
    answer: ({ line }) => (line === "id" ? ["ok 0 vm 0 -\n"] : ["child 1 v exited 3 2 1\nokfile 3 /out/a\n"]),
  });
  const ran = await bindings.run([join(directory.path, "linked"), "id", "next t1", "clone T"], socket);
  expect(ran).toEqual({
    stdout: "0 vm 0 -\n1 v exited 3 6f6b|/out/a\nerror BAD_CALL\n",
    ...{ stderr: "", code: 0 },
  });
});
