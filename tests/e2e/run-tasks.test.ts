import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type CliEvent, CliSandbox, eventsOf, sortedLines } from "../support/cli.ts";

let sandbox: CliSandbox;

setDefaultTimeout(120_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

/** `flurry run --image base OPTIONS -- sh -c SCRIPT` */
function run(options: string[], script: string) {
  return sandbox.flurry(["run", "--image", "base", ...options, "--", "sh", "-c", script]);
}

describe("flurry run", () => {
  test("gives each task its index, the count, its attempt, and a VM of its own", async () => {
    const script =
      "echo $FLURRY_TASK_INDEX of $FLURRY_TASK_COUNT, attempt $FLURRY_ATTEMPT, in $FLURRY_VM_ID $(uname -n)";
    const { status, stdout } = await run(["--count", "5"], script);
    expect(status).toBe(0);
    const lines = sortedLines(stdout);
    expect(lines.length).toBe(5);
    const vms = lines.map((line, index) => {
      const [, task, vm, host] = /^\[(\d)\] \1 of 5, attempt 1, in (vm-[0-9a-f]+) (.*)$/.exec(line) ?? [];
      expect(task).toBe(String(index));
      expect(host).toBe(`base-${index}`);
      return vm;
    });
    expect(new Set(vms).size).toBe(5);
  });

  test("fetches what a task leaves in /out, with directories and modes, to DIR/INDEX", async () => {
    const dir = join(sandbox.directory, "outputs/of this run");
    const script = `
      cd /out
      mkdir -p deep/er empty
      echo "task $FLURRY_TASK_INDEX" > 'deep/er/a name'
      chmod 640 'deep/er/a name'
      printf '#!/bin/sh\\n' > program; chmod 755 program
      : > nothing
      ln -s program link
      head -c 3000001 /dev/urandom > random
      sha256sum < random`;
    const { status, stdout } = await run(["--count", "2", "--out", dir], script);
    expect(status).toBe(0);
    expect(readdirSync(dir).sort()).toEqual(["0", "1"]);
    for (const index of [0, 1]) {
      const path = (name: string) => join(dir, String(index), name);
      expect(readdirSync(join(dir, String(index))).sort()).toEqual([
        "deep",
        "empty",
        "nothing",
        "program",
        "random",
      ]);
      expect(readFileSync(path("deep/er/a name"), "utf8")).toBe(`task ${index}\n`);
      expect(statSync(path("deep/er/a name")).mode & 0o777).toBe(0o640);
      expect(statSync(path("program")).mode & 0o777).toBe(0o755);
      expect(statSync(path("nothing")).size).toBe(0);
      expect(readdirSync(path("empty"))).toEqual([]);
      const bytes = readFileSync(path("random"));
      expect(bytes.length).toBe(3_000_001);
      expect(stdout).toContain(`[${index}] ${createHash("sha256").update(bytes).digest("hex")}`);
    }
  });

  test("shows stdout and stderr by task, each on its own stream, as whole lines", async () => {
    const script = 'printf "one\\ntwo"; printf "err $FLURRY_TASK_INDEX\\n" >&2; printf " and a half"';
    const { status, stdout, stderr } = await run(["--count", "3"], script);
    expect(status).toBe(0);
    const expected = [0, 1, 2].flatMap((index) => [`[${index}] one`, `[${index}] two and a half`]);
    expect(sortedLines(stdout)).toEqual(expected);
    for (const index of [0, 1, 2]) expect(stderr).toContain(`[${index}] err ${index}\n`);
    expect(stderr).toMatch(/^3 of 3 tasks succeeded in /m);
  });

  test("takes --env, --cwd and arguments as they are, and no shell of the host sees them", async () => {
    const { status, stdout } = await sandbox.flurry([
      ...["run", "--image", "base", "--env", "A=1=2", "--env", "B= x ", "--cwd", "/usr/share"],
      ...["--", "sh", "-c", 'pwd; echo "$A|$B|$1|$HOME"', "sh", "$(id) --json"],
    ]);
    expect(status).toBe(0);
    expect(stdout).toBe("[0] /usr/share\n[0] 1=2| x |$(id) --json|/root\n");
  });

  test("runs what --warm did once, in the parent, for every child", async () => {
    const warm = "cat /proc/sys/kernel/random/uuid > /run/warmed";
    const options = ["--count", "3", "--warm", warm, "--json", "--memory", "128"];
    const result = await run(options, "cat /run/warmed");
    expect(result.status).toBe(0);
    const lines = eventsOf(result).filter((event) => event.event === "stdout");
    expect(lines.length).toBe(3);
    expect(new Set(lines.map((event) => event.line)).size).toBe(1);
  });

  test("runs no more children at a time than --children says", async () => {
    const result = await run(["--count", "4", "--children", "1", "--json"], "true");
    expect(result.status).toBe(0);
    const order = eventsOf(result).filter(({ event }) => event === "started" || event === "ended");
    expect(order.map(({ event }) => event)).toEqual(Array(4).fill(["started", "ended"]).flat());
  });

  test("may run twice at the same time", async () => {
    const both = await Promise.all(["a", "b"].map((word) => run(["--count", "2"], `echo ${word}`)));
    expect(both.map(({ status }) => status)).toEqual([0, 0]);
    expect(both.map(({ stdout }) => sortedLines(stdout))).toEqual([
      ["[0] a", "[1] a"],
      ["[0] b", "[1] b"],
    ]);
  });
});

describe("flurry run --json", () => {
  test("prints one JSON object a line: start, output and end of each task, then a summary", async () => {
    const dir = join(sandbox.directory, "json");
    const script = "echo out; echo err >&2; echo kept > /out/file";
    const result = await run(["--count", "2", "--out", dir, "--json"], script);
    expect(result.status).toBe(0);
    expect(result.stderr).toBe("");
    const events = eventsOf(result);
    for (const index of [0, 1]) {
      const own = events.filter((event) => event.task === index);
      expect(own.map((event) => event.event).sort()).toEqual(["ended", "started", "stderr", "stdout"]);
      expect(own[0]).toMatchObject({ event: "started", vm: expect.stringMatching(/^vm-/) });
      expect(own.at(-1)).toMatchObject({
        event: "ended",
        state: "succeeded",
        outcome: { code: 0, files: 1 },
      });
      for (const key of ["shellMs", "runningMs", "answerMs"]) {
        expect(own[0]).toHaveProperty(["times", key], expect.any(Number));
      }
      expect(own.at(-1)?.privateBytes).toBeGreaterThan(0);
      expect(own.find((event) => event.event === "stdout")?.line).toBe("out");
      expect(own.find((event) => event.event === "stderr")?.line).toBe("err");
      expect(readFileSync(join(dir, String(index), "file"), "utf8")).toBe("kept\n");
    }
    const done = events.at(-1) as CliEvent;
    expect(done).toMatchObject({ event: "done", succeeded: 2, failed: 0 });
    expect(done.totalMs).toBeGreaterThan(0);
  });
});

describe("flurry run with a task that fails", () => {
  test("ends with 4, shows which task and how, and keeps the outputs of the others", async () => {
    const dir = join(sandbox.directory, "some");
    const script = `
      echo $FLURRY_TASK_INDEX > /out/index
      [ $FLURRY_TASK_INDEX != 1 ] || exit 7
      [ $FLURRY_TASK_INDEX != 2 ] || kill -KILL $$`;
    const { status, stderr } = await run(["--count", "4", "--out", dir], script);
    expect(status).toBe(4);
    expect(stderr).toContain("[1] failed: exit status 7\n");
    expect(stderr).toContain("[2] failed: signal SIGKILL\n");
    expect(stderr).toMatch(/^2 of 4 tasks succeeded in /m);
    for (const index of [0, 3]) {
      expect(readFileSync(join(dir, String(index), "index"), "utf8")).toBe(`${index}\n`);
    }
  });

  test("ends a task after --timeout, and its VM with it", async () => {
    const script = "[ $FLURRY_TASK_INDEX = 0 ] || sleep 100000";
    const result = await run(["--count", "2", "--timeout", "2", "--json"], script);
    expect(result.status).toBe(4);
    const ended = eventsOf(result).filter(({ event }) => event === "ended");
    expect(ended.find(({ task }) => task === 0)).toMatchObject({ state: "succeeded" });
    expect(ended.find(({ task }) => task === 1)).toMatchObject({
      state: "failed",
      error: { code: "TASK_TIMEOUT", message: "Task 1 has not ended within 2000 ms" },
    });
    expect(sandbox.leftovers()).toEqual([]);
  });

  test("says that a program or a working directory is missing in the guest", async () => {
    const missing = await sandbox.flurry(["run", "--image", "base", "--", "no-such-program"]);
    expect(missing.status).toBe(4);
    expect(missing.stderr).toMatch(/^\[0\] failed: .*no-such-program.* \(TASK_FAILED\)$/m);
    const astray = await sandbox.flurry(["run", "--image", "base", "--cwd", "/no/dir", "--", "true"]);
    expect(astray.status).toBe(4);
    expect(astray.stderr).toMatch(/^\[0\] failed: .* \(TASK_FAILED\)$/m);
  });

  test("leaves no outputs of a task that ended before they were whole", async () => {
    const dir = join(sandbox.directory, "none");
    const script = "echo x > /out/x; sleep 100000";
    const { status } = await run(["--timeout", "1", "--out", dir], script);
    expect(status).toBe(4);
    expect(existsSync(dir)).toBe(true);
    expect(readdirSync(dir)).toEqual([]);
  });
});
