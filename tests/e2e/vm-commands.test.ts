import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CliSandbox, eventsOf } from "../support/cli.ts";
import { eventually, GatewaySandbox, idleRuntime } from "../support/gateway-sandbox.ts";
import { type ProgramScript, ScriptedVms } from "../support/scripted-vms.ts";

let sandbox: CliSandbox;
let gateway: GatewaySandbox;
let vms: ScriptedVms;

setDefaultTimeout(60_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  vms = new ScriptedVms();
  gateway = await GatewaySandbox.open({ runtime: () => ({ ...idleRuntime(), vms }) });
});

afterAll(async () => {
  await gateway[Symbol.asyncDispose]();
  await sandbox[Symbol.asyncDispose]();
});

/** `flurry vm ARGS` */
function start(args: string[], stdin?: string) {
  const run = sandbox.start(["vm", ...args], { env: { FLURRY_URL: gateway.url, FLURRY_KEY: "" } });
  if (stdin !== undefined) run.process.stdin?.end(stdin);
  return run;
}

function vm(args: string[], stdin?: string) {
  return start(args, stdin).ended;
}

async function made(args: string[] = ["--image", "base"]): Promise<string> {
  const { status, stdout, stderr } = await vm(["create", ...args]);
  expect([status, stderr]).toEqual([0, expect.any(String)]);
  return stdout.trim();
}

test("vm create, fork, ls --tree, checkpoint and kill", async () => {
  const id = await made(["--image", "base", "--memory", "128"]);
  vms.failing = (index) => (index === 2 ? new Error("no") : undefined);
  const forked = await vm(["fork", id, "3"]);
  vms.failing = () => undefined;
  expect(forked.status).toBe(5);
  const [a, b] = forked.stdout.trim().split("\n");
  expect(forked.stderr).toMatch(/A child did not start: .*INTERNAL/);
  const tree = await vm(["ls", "--tree"]);
  expect(tree.stdout).toMatch(new RegExp(`^${id} .*\\n├─ ${a} +1 +1 .*\\n└─ ${b} +1 +3 `, "m"));
  const listed = eventsOf(await vm(["ls", "--json"]));
  expect(listed).toMatchObject([{ event: "vm", id }, { parent: id }, { parent: id }]);

  expect((await vm(["checkpoint", id, "warm"])).status).toBe(0);
  expect((await vm(["checkpoints"])).stdout).toMatch(new RegExp(`^warm +${id} +0 `, "m"));
  const again = await vm(["checkpoint", id, "warm", "--json"]);
  expect([again.status, eventsOf(again).at(-1)?.code]).toEqual([2, "CHECKPOINT_EXISTS"]);
  const woken = await made(["--checkpoint", "warm"]);
  expect((await vm(["rm-checkpoint", "warm"])).stdout).toBe("Removed warm\n");

  // The second is gone with the first.
  const killed = await vm(["kill", id, a!, woken]);
  expect([killed.status, killed.stdout]).toEqual([
    0,
    `Killed ${id}\nKilled ${a}\nKilled ${b}\nKilled ${woken}\n`,
  ]);
  const none = await vm(["kill", id]);
  expect([none.status, none.stderr]).toEqual([2, expect.stringContaining("VM_NOT_FOUND")]);
});

test("vm exec shows both outputs as they are, and exits as the program does", async () => {
  const id = await made();
  const scripts: Record<string, ProgramScript> = {
    echo: async ({ argv, options, print }) => {
      await print(`${argv.slice(1).join(" ")} ${JSON.stringify(options.env)} ${options.cwd}\n`);
      await print(`aside ${options.timeoutMs}\n`, "stderr");
      return { code: 7 };
    },
    cat: async ({ input, print }) => {
      await print(await input());
      return { signal: "SIGKILL" };
    },
    late: () => Promise.reject(Object.assign(new Error("It took too long"), { code: "AGENT_TIMEOUT" })),
  };
  vms.script = (program) => scripts[program.argv[0]!]!(program);
  const echo = [
    "exec",
    id,
    "--env",
    "A=1",
    "--cwd",
    "/tmp",
    "--timeout",
    "1.5",
    "--",
    "echo",
    "-n",
    "--json",
  ];
  expect(await vm(echo)).toMatchObject({
    status: 7,
    stdout: '-n --json {"A":"1"} /tmp\n',
    stderr: "aside 1500\n",
  });
  expect(await vm(["exec", "-i", id, "--", "cat"], "in\n")).toMatchObject({ status: 137, stdout: "in\n" });
  const events = eventsOf(await vm(["exec", "-i", "--json", id, "--", "cat"], "ä"));
  expect(events).toEqual([
    { event: "output", stream: "stdout", base64: "w6Q=" },
    { event: "exit", signal: "SIGKILL" },
  ]);
  expect(await vm(["exec", id, "--", "late"])).toMatchObject({
    status: 5,
    stderr: expect.stringContaining("AGENT_TIMEOUT"),
  });
});

test("vm exec ends the program when it is interrupted", async () => {
  const id = await made();
  let killed = false;
  vms.script = async ({ print, signal }) => {
    signal.addEventListener("abort", () => {
      killed = true;
    });
    await print("here\n");
    return await new Promise(() => undefined);
  };
  const run = start(["exec", id, "--", "sleep"]);
  await run.until(/here/);
  run.kill("SIGINT");
  expect((await run.ended).status).toBe(130);
  await eventually(() => killed);
});

test("vm cp copies both ways, with permission bits, and leaves nothing in part", async () => {
  const id = await made();
  const dir = sandbox.directory;
  const content = Buffer.from(new Uint8Array(200_000).map((_, at) => at % 249));
  writeFileSync(join(dir, "a b"), content, { mode: 0o750 });
  expect(await vm(["cp", "a b", `${id}:/x/`])).toMatchObject({ status: 0, stdout: "" });
  const file = vms.files.get(`${id} /x/a b`);
  expect([file?.mode, content.equals(file?.bytes ?? new Uint8Array())]).toEqual([0o750, true]);
  writeFileSync(join(dir, "back"), "older");
  expect(await vm(["cp", `${id}:/x/a b`, "back"])).toMatchObject({ status: 0 });
  expect(readFileSync(join(dir, "back")).equals(content)).toBe(true);
  expect(statSync(join(dir, "back")).mode & 0o777).toBe(0o750);
  expect(await vm(["cp", "-", `${id}:/in`], "from stdin")).toMatchObject({ status: 0 });
  expect(await vm(["cp", `${id}:/in`, "-"])).toMatchObject({ status: 0, stdout: "from stdin" });
  expect(await vm(["cp", `${id}:/in`, "."])).toMatchObject({ status: 0 });
  const wrong: [string, string, string][] = [
    [`${id}:/none`, "none", "FILE_NOT_FOUND"],
    [`${id}:/in`, "no/such/dir", "BAD_ARGUMENT"],
    ["none", `${id}:/a`, "BAD_ARGUMENT"],
    [".", `${id}:/a`, "BAD_ARGUMENT"],
    ["a b", "b", "BAD_ARGUMENT"],
    [`${id}:/in`, `${id}:/b`, "BAD_ARGUMENT"],
  ];
  for (const [from, to, code] of wrong) {
    const { status, stderr } = await vm(["cp", from, to]);
    expect([from, to, status, stderr]).toEqual([from, to, 2, expect.stringContaining(code)]);
  }
  expect(readdirSync(dir).sort()).toEqual(["a b", "back", "in"]);
});

test("every vm command has a help with examples", async () => {
  const verbs = ["create", "ls", "fork", "exec", "cp", "checkpoint", "checkpoints", "rm-checkpoint", "kill"];
  const helps = await Promise.all(verbs.map((verb) => vm([verb, "--help"])));
  for (const [at, { status, stdout }] of helps.entries()) {
    expect([verbs[at], status, stdout]).toEqual([verbs[at], 0, expect.stringContaining("Examples:")]);
  }
});
