import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { generateKeyPairSync } from "node:crypto";
import { mkdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { formatMs } from "../../runtime/cli/format.ts";
import {
  type CliOptions,
  type CliResult,
  type CliRun,
  CliSandbox,
  eventsOf,
  sortedLines,
} from "../support/cli.ts";

let sandbox: CliSandbox;
let gateway: CliRun;
let env: Record<string, string>;
let data: string;

setDefaultTimeout(120_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
  data = join(sandbox.directory, "data");
  gateway = sandbox.start(["serve", "--listen", "127.0.0.1:0", "--data", data, "--children", "2", "--json"]);
  const [, url] = await gateway.until(/"event":"ready","url":"([^"]+)"/);
  env = { FLURRY_URL: url!, FLURRY_KEY: "" };
}, 900_000);

afterAll(async () => {
  gateway.kill("SIGTERM");
  expect((await gateway.ended).status).toBe(0);
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
}, 60_000);

function flurry(args: string[], { stdin, ...options }: CliOptions & { stdin?: string } = {}) {
  const run = sandbox.start(args, { ...options, env: { ...env, ...options.env } });
  if (stdin !== undefined) run.process.stdin?.end(stdin);
  return run.ended;
}

/** `flurry job submit --image base OPTIONS -- sh -c SCRIPT` */
function submit(options: string[], script: string, more: CliOptions & { stdin?: string } = {}) {
  return flurry(["job", "submit", "--image", "base", ...options, "--", "sh", "-c", script], more);
}

/** Submits, waits, and returns the id of the job. */
async function submitted(options: string[], script: string): Promise<string> {
  const result = await submit([...options, "--wait", "--json"], script);
  const job = eventsOf(result).find(({ event }) => event === "job");
  if (job === undefined) throw new Error(`No job: ${result.stdout}`);
  return String(job.id);
}

function errorOf({ stdout }: CliResult) {
  const last = stdout.trimEnd().split("\n").at(-1) ?? "";
  return JSON.parse(last);
}

describe("flurry job submit", () => {
  test("prints the id of the job, which can be waited for", async () => {
    const { status, stdout, stderr } = await submit(["--count", "3"], "echo I am $FLURRY_TASK_INDEX");
    expect(status).toBe(0);
    expect(stdout).toMatch(/^job_[0-9a-f]{24}\n$/);
    expect(stderr).toBe(`Job ${stdout.trim()}: 3 tasks\n`);
    const waited = await flurry(["job", "wait", stdout.trim()]);
    expect(waited.status).toBe(0);
    expect(waited.stdout).toBe("[0] I am 0\n[1] I am 1\n[2] I am 2\n");
    // The time that the job took, however late somebody waits for it.
    const [job] = eventsOf(await flurry(["job", "get", stdout.trim(), "--json"]));
    const took = formatMs(Date.parse(String(job?.endedAt)) - Date.parse(String(job?.startedAt)));
    expect(waited.stderr).toContain(`3 of 3 tasks succeeded in ${took}; the job has succeeded\n`);
  });

  test("with --wait shows the results and ends with 4 when a task failed", async () => {
    const options = ["--count", "3", "--wait"];
    const { status, stdout, stderr } = await submit(options, "echo out; exit $FLURRY_TASK_INDEX");
    expect(status).toBe(4);
    expect(stdout).toBe("[0] out\n[1] out\n[2] out\n");
    expect(stderr).toContain("[1] failed: exit status 1\n");
    expect(stderr).toContain("[2] failed: exit status 2\n");
    const json = await submit([...options, "--json"], "exit $FLURRY_TASK_INDEX");
    expect(json.status).toBe(4);
    expect(json.stderr).toBe("");
    const events = eventsOf(json);
    expect(events[0]).toMatchObject({ event: "job", replayed: false, state: "queued" });
    expect(events.filter(({ event }) => event === "result").map(({ exitCode }) => exitCode)).toEqual([
      0, 1, 2,
    ]);
    expect(events.at(-1)).toMatchObject({ event: "done", state: "failed", succeeded: 1, failed: 2 });
  });

  test("makes a task of each line of the standard input, or of a file of JSON values", async () => {
    const lines = await submit(["--inputs", "-", "--lines", "--wait"], "cat", { stdin: "one\n{two\n" });
    expect(lines.stdout).toBe("[0] one\n[1] {two\n");
    const file = join(sandbox.directory, "inputs.ndjson");
    writeFileSync(file, '{"a":1}\n\n"text"\n');
    const json = await submit(["--inputs", file, "--wait"], 'cat; echo " $FLURRY_TASK_INPUT"');
    expect(json.stdout).toBe('[0] {"a":1} {"a":1}\n[1] text text\n');
    writeFileSync(file, "1\n{two\n");
    const broken = await submit(["--inputs", file, "--json"], "true");
    expect(broken.status).toBe(2);
    expect(errorOf(broken)).toMatchObject({
      code: "BAD_ARGUMENT",
      message: `Line 2 of "${file}" is no JSON`,
    });
    const missing = await submit(["--inputs", `${file}-not`, "--json"], "true");
    expect(errorOf(missing).message).toContain("ENOENT");
    const empty = await submit(["--inputs", "-"], "true", { stdin: "" });
    expect(empty.status).toBe(2);
  });

  test("brings files, variables, secrets and a warm-up", async () => {
    const script = join(sandbox.directory, "show.sh");
    writeFileSync(script, 'echo "$A|$(cat /run/warm)|$TOKEN"\n', { mode: 0o755 });
    const put = await flurry(["secret", "put", "token"], { stdin: "s3cret\n" });
    expect(put.stdout).toBe("Stored token\n");
    await flurry(["secret", "put", "ours", "--key", "ann", "--key", "bob"], { stdin: "s3cret\n" });
    const listed = (await flurry(["secret", "ls"])).stdout;
    expect(listed).toMatch(/^token +all +\S+Z$/m);
    expect(listed).toMatch(/^ours +ann bob +\S+Z$/m);
    const options = [
      ...["--file", `/opt/show.sh=${script}`, "--warm", "echo warmed > /run/warm"],
      ...["--env", "A=1=2", "--secret", "TOKEN=token", "--wait", "--memory", "256"],
    ];
    const shown = await submit(options, "/opt/show.sh");
    expect(shown.stdout).toBe("[0] 1=2|warmed|s3cret\n");
    expect((await flurry(["secret", "rm", "token"])).stdout).toBe("Removed token\n");
    const without = await submit(["--secret", "TOKEN=token", "--json"], "true");
    expect(errorOf(without).code).toBe("SECRET_NOT_FOUND");
  });

  test("flurry vm receipt shows what the VM of a task has proven, and that it is signed", async () => {
    const ran = await submit(["--wait"], "echo $FLURRY_VM_ID; uname -n; cat /etc/machine-id");
    const [id, hostname, machineId] = ran.stdout.split("\n").map((line) => line.replace("[0] ", ""));
    const table = await flurry(["vm", "receipt", id!]);
    expect(table.status).toBe(0);
    expect(table.stdout).toMatch(new RegExp(`^host name +${hostname} +${hostname}$`, "m"));
    expect(table.stdout).toMatch(new RegExp(`^machine id +${machineId} +${machineId}$`, "m"));
    expect(table.stdout).toContain("Signature: valid, by the key that the gateway shows");
    const [shown] = eventsOf(await flurry(["vm", "receipt", id!, "--json"]));
    expect(shown).toMatchObject({ event: "receipt", valid: true, receipt: { vm: id } });
    const key = join(sandbox.directory, "receipts.pem");
    writeFileSync(key, String(shown!.publicKey));
    expect((await flurry(["vm", "receipt", id!, "--public-key", key])).stdout).toContain(
      `valid, by the key in ${key}`,
    );
    const other = generateKeyPairSync("ed25519").publicKey.export({ type: "spki", format: "pem" });
    writeFileSync(key, other);
    const foreign = await flurry(["vm", "receipt", id!, "--public-key", key]);
    expect(foreign.status).toBe(5);
    expect(foreign.stdout).toContain(`Signature: NOT VALID, by the key in ${key}`);
    expect(errorOf(await flurry(["vm", "receipt", "vm-none", "--json"]))).toMatchObject({
      code: "RECEIPT_NOT_FOUND",
      hint: expect.stringContaining("100000"),
    });
    writeFileSync(key, "no key");
    const noKey = await flurry(["vm", "receipt", id!, "--public-key", key, "--json"]);
    expect([noKey.status, errorOf(noKey).code]).toEqual([2, "BAD_ARGUMENT"]);
  });

  test("with --dry-run checks the job and stores nothing", async () => {
    const before = eventsOf(await flurry(["job", "ls", "--limit", "1000", "--json"])).length;
    const valid = await submit(["--inputs", "-", "--dry-run"], "true", { stdin: "1\n2\n3\n" });
    expect(valid.stdout).toBe("The job is valid: 3 tasks in image base\n");
    const wrong = await submit(["--priority", "10", "--dry-run", "--json"], "true");
    expect(wrong.status).toBe(2);
    expect(errorOf(wrong).message).toContain("priority");
    expect(eventsOf(await flurry(["job", "ls", "--limit", "1000", "--json"])).length).toBe(before);
  });

  test("makes one job of two submissions with one idempotency key", async () => {
    const options = ["--idempotency-key", "nightly"];
    const first = await submit(options, "true");
    const second = await submit(options, "true");
    expect(second.stdout).toBe(first.stdout);
    expect(second.stderr).toContain("submitted before");
    const other = await submit([...options, "--json"], "false");
    expect(other.status).toBe(2);
    expect(errorOf(other).code).toBe("IDEMPOTENCY_MISMATCH");
  });

  test.each([
    [["--image", "base"], "No command"],
    [["--", "true"], "No image"],
    [["--image", "base", "--count", "0", "--", "true"], "--count"],
    [["--image", "base", "--count", "1", "--inputs", "-", "--", "true"], "exclude"],
    [["--image", "base", "--lines", "--", "true"], "--lines"],
    [["--worker", "a", "--", "true"], "a command"],
    [["--worker", "a", "--image", "base"], "--image"],
    [["--image", "base", "--file", "/a=/does/not/exist", "--", "true"], "/does/not/exist"],
    [["--image", "base", "--retries", "x", "--", "true"], "--retries"],
  ])("refuses %j", async (args, text) => {
    const result = await flurry(["job", "submit", "--json", ...args]);
    expect(result.status).toBe(2);
    expect(errorOf(result)).toMatchObject({ code: "BAD_ARGUMENT", message: expect.stringContaining(text) });
  });

  test("leaves the job alone when it is interrupted while it waits", async () => {
    const args = ["job", "submit", "--image", "base", "--wait", "--", "sh", "-c", "sleep 100000"];
    const run = sandbox.start(args, { env });
    const [, id] = await run.until(/(job_[0-9a-f]{24}): 1 task/);
    run.kill("SIGINT");
    const { status, stderr } = await run.ended;
    expect(status).toBe(130);
    expect(stderr).toContain(`flurry job cancel ${id}`);
    expect((await flurry(["job", "cancel", id!])).stdout).toMatch(new RegExp(`^${id} cancel(ing|ed)\n$`));
    const waited = await flurry(["job", "wait", id!, "--json"]);
    expect(waited.status).toBe(4);
    expect(eventsOf(waited).at(-1)).toMatchObject({ event: "done", state: "canceled", canceled: 1 });
  });
});

describe("flurry job", () => {
  test("ls and get show jobs by state and tag, and their tasks", async () => {
    const options = ["--count", "2", "--tag", "shown", "--name", "my name", "--retries", "1"];
    const id = await submitted(options, "exit $FLURRY_TASK_INDEX");
    const listed = await flurry(["job", "ls", "--tag", "shown", "--state", "failed"]);
    expect(listed.stdout).toMatch(new RegExp(`^${id} +failed +2/2 +1 .* image base +my name +shown$`, "m"));
    expect((await flurry(["job", "ls", "--tag", "shown", "--state", "running"])).stderr).toBe("No jobs\n");
    expect((await flurry(["job", "ls", "--state", "gone"])).status).toBe(2);
    const got = await flurry(["job", "get", id, "--state", "failed"]);
    expect(got.stdout).toMatch(/^tasks +2 in all, 1 succeeded, 1 failed$/m);
    expect(got.stdout).toMatch(/^\[1\] failed, attempt 2, exit status 1: /m);
    expect(got.stdout).not.toContain("[0]");
    const json = eventsOf(await flurry(["job", "get", id, "--tasks", "--json"]));
    expect(json.map(({ event }) => event)).toEqual(["job", "task", "task"]);
    const missing = await flurry(["job", "get", "job_000000000000000000000000", "--json"]);
    expect(missing.status).toBe(2);
    expect(errorOf(missing).code).toBe("JOB_NOT_FOUND");
  });

  test("logs, events and results show what was printed and what happened, also while it runs", async () => {
    const script = 'echo "out $FLURRY_TASK_INDEX"; echo err >&2; printf unfinished';
    const { stdout } = await submit(["--count", "2"], script);
    const id = stdout.trim();
    const logs = await flurry(["job", "logs", "-f", id]);
    expect(logs.status).toBe(0);
    expect(sortedLines(logs.stdout)).toEqual(["[0] out 0", "[0] unfinished", "[1] out 1", "[1] unfinished"]);
    expect(sortedLines(logs.stderr)).toEqual(["[0] err", "[1] err"]);
    const one = await flurry(["job", "logs", id, "--task", "1"]);
    expect(one.stdout).toBe("out 1\nunfinished");
    expect(one.stderr).toBe("err\n");
    const events = eventsOf(await flurry(["job", "events", id, "--json"]));
    expect(events[0]).toMatchObject({ event: "event", type: "job.queued" });
    expect(events.at(-1)).toMatchObject({ event: "event", type: "job.succeeded" });
    expect((await flurry(["job", "events", "-f", id])).stdout.trimEnd().split("\n").length).toBe(
      events.length,
    );
    const results = await flurry(["job", "results", "-f", "--order", "completion", id, "--json"]);
    expect(
      eventsOf(results)
        .map(({ index }) => index)
        .sort(),
    ).toEqual([0, 1]);
  });

  test("retry and rm take an ended job up again and away", async () => {
    const id = await submitted(["--count", "2"], "exit $FLURRY_TASK_INDEX");
    expect((await flurry(["job", "retry", id, "--task", "0"])).status).toBe(2);
    expect((await flurry(["job", "retry", id])).status).toBe(0);
    const again = await flurry(["job", "wait", id, "--json"]);
    expect(eventsOf(again).at(-1)).toMatchObject({ succeeded: 1, failed: 1 });
    expect((await flurry(["job", "rm", id])).stdout).toBe(`Removed ${id}\n`);
    expect((await flurry(["job", "get", id])).status).toBe(2);
  });
});

describe("flurry job artifacts", () => {
  let id: string;

  beforeAll(async () => {
    const script = `
      mkdir -p /out/deep; echo "task $FLURRY_TASK_INDEX" > '/out/deep/a name'; : > /out/empty
      head -c 3000001 /dev/urandom > /out/random; chmod 750 /out/random; sha256sum < /out/random`;
    id = await submitted(["--count", "2"], script);
  });

  test("lists them, and fetches them to DIR/TASK/PATH with their modes", async () => {
    const listed = await flurry(["job", "artifacts", id, "--task", "1"]);
    expect(listed.stdout).toBe(
      "1    7 B  deep/a name\n1    0 B  empty\n1  2.9 MiB  random\n".replaceAll(
        /^(1 +)(\d B)/gm,
        "1      $2",
      ),
    );
    const dir = join(sandbox.directory, "fetched");
    const fetched = await flurry(["job", "artifacts", id, "--out", dir]);
    expect(fetched.status).toBe(0);
    expect(fetched.stderr).toMatch(/^6 files in /m);
    const files = await readdir(dir, { recursive: true });
    expect(files.sort()).toEqual(
      ["0", "1"].flatMap((task) =>
        ["", "/deep", "/deep/a name", "/empty", "/random"].map((name) => task + name),
      ),
    );
    expect(readFileSync(join(dir, "1/deep/a name"), "utf8")).toBe("task 1\n");
    expect(statSync(join(dir, "0/random")).size).toBe(3_000_001);
    expect(statSync(join(dir, "0/random")).mode & 0o777).toBe(0o750);
  });

  test("takes a download up again, and never overwrites", async () => {
    const dir = join(sandbox.directory, "again");
    expect((await flurry(["job", "artifacts", id, "--out", dir])).status).toBe(0);
    rmSync(join(dir, "0/random"));
    const again = await flurry(["job", "artifacts", id, "--out", dir, "--json"]);
    expect(again.status).toBe(0);
    expect(eventsOf(again).at(-1)).toMatchObject({ event: "done", files: 6, existed: 5 });
    writeFileSync(join(dir, "1/deep/a name"), "mine");
    const refused = await flurry(["job", "artifacts", id, "--out", dir, "--json"]);
    expect(refused.status).toBe(2);
    expect(errorOf(refused).message).toContain("with another content");
    expect(readFileSync(join(dir, "1/deep/a name"), "utf8")).toBe("mine");
  });

  test("follows no symbolic link out of the directory", async () => {
    const dir = join(sandbox.directory, "linked");
    const outside = join(sandbox.directory, "outside");
    mkdirSync(join(dir, "0"), { recursive: true });
    mkdirSync(outside);
    symlinkSync(outside, join(dir, "0/deep"));
    const refused = await flurry(["job", "artifacts", id, "--out", dir, "--json"]);
    expect(refused.status).toBe(2);
    expect(errorOf(refused).message).toContain("is no directory");
    expect(await readdir(outside)).toEqual([]);
  });
});

describe("flurry worker", () => {
  test("put says where to see what becomes of a worker whose image is not there", async () => {
    const put = await flurry(["worker", "put", "lost", "--image", "lost-image", "--", "true"]);
    expect([put.status, put.stdout]).toEqual([0, "lost@1 preparing\n"]);
    expect(put.stderr).toContain("flurry worker get lost");
    const job = await flurry(["job", "submit", "--worker", "lost", "--wait"]);
    expect(job.status).toBe(4);
    expect(job.stderr).toContain('[0] failed: No image "lost-image"');
    expect((await flurry(["worker", "ls"])).stdout).toMatch(/^lost@1 +current +failed .*IMAGE_NOT_FOUND/m);
    expect((await flurry(["worker", "rm", "lost"])).status).toBe(0);
  });

  test("put, ls, get, use and rm go through a worker's versions, which jobs run by name", async () => {
    const put = (word: string) =>
      flurry(["worker", "put", "greeter", "--image", "base", "--", "sh", "-c", `echo ${word} $NAME`]);
    expect((await put("hello")).stdout).toMatch(/^greeter@1 \w+\n$/);
    expect((await put("bye")).stdout).toMatch(/^greeter@2 \w+\n$/);
    const submit = (worker: string) =>
      flurry(["job", "submit", "--worker", worker, "--env", "NAME=you", "--wait"]);
    expect((await submit("greeter")).stdout).toBe("[0] bye you\n");
    expect((await submit("greeter@1")).stdout).toBe("[0] hello you\n");
    expect((await flurry(["worker", "use", "greeter@1"])).stdout).toBe("greeter@1 is current\n");
    expect((await flurry(["worker", "ls"])).stdout).toMatch(/^greeter@1 +current +ready +base /m);
    expect(eventsOf(await flurry(["worker", "get", "greeter", "--versions", "--json"])).length).toBe(2);
    const shown = JSON.parse((await flurry(["worker", "get", "greeter@2"])).stdout);
    const spec = join(sandbox.directory, "spec.json");
    writeFileSync(spec, JSON.stringify(shown.spec));
    expect((await flurry(["worker", "put", "copy", "--spec", spec])).status).toBe(0);
    expect((await flurry(["worker", "rm", "greeter", "copy"])).stdout).toBe(
      "Removed greeter\nRemoved copy\n",
    );
    const gone = await submit("greeter");
    expect(gone.status).toBe(2);
    expect(gone.stderr).toContain("deploy it first: flurry worker put greeter");
  });
});

test("commands say when nobody listens, and what to do", async () => {
  const result = await flurry(["job", "ls"], { env: { FLURRY_URL: "http://127.0.0.1:9" } });
  expect(result.status).toBe(5);
  expect(result.stderr).toContain("Cannot reach the gateway at http://127.0.0.1:9");
  expect(result.stderr).toContain("flurry serve");
  expect(result.stderr).toContain("code: GATEWAY_UNREACHABLE");
});

describe("flurry key", () => {
  test("makes keys in a data directory that no gateway has", async () => {
    const busy = await flurry(["key", "create", "--name", "x", "--scope", "admin", "--data", data, "--json"]);
    expect(busy.status).toBe(5);
    expect(errorOf(busy).code).toBe("DATA_IN_USE");
    const idle = join(sandbox.directory, "idle");
    const made = await flurry(["key", "create", "--name", "first", "--scope", "admin", "--data", idle]);
    expect(made.stdout).toMatch(/^flk_[0-9a-f]{16}_\S{43}\n$/);
    const listed = eventsOf(await flurry(["key", "ls", "--data", idle, "--json"]));
    expect(listed).toMatchObject([{ event: "key", name: "first", scopes: ["admin"] }]);
    expect(JSON.stringify(listed)).not.toContain(made.stdout.trim().split("_")[2]!);
    expect((await flurry(["key", "rm", String(listed[0]?.id), "--data", idle])).status).toBe(0);
    expect((await flurry(["key", "rm", String(listed[0]?.id), "--data", idle])).status).toBe(2);
  });

  // The last one: from the first key on nobody is answered without one.
  test("makes, lists and removes the keys of a gateway that runs", async () => {
    const admin = (await flurry(["key", "create", "--name", "ops", "--scope", "admin"])).stdout.trim();
    const refused = await flurry(["job", "ls", "--json"]);
    expect(refused.status).toBe(2);
    expect(errorOf(refused).code).toBe("UNAUTHENTICATED");
    const withKey = (key: string, ...args: string[]) => flurry(args, { env: { FLURRY_KEY: key } });
    const create = ["key", "create", "--name", "ci", "--scope", "submit", "--running-tasks", "1", "--json"];
    const ci = eventsOf(await withKey(admin, ...create)).find(({ event }) => event === "key")!;
    expect(ci).toMatchObject({ name: "ci", scopes: ["submit"], limits: { runningTasks: 1 } });
    expect((await withKey(String(ci.key), "job", "ls")).stderr).toContain("code: FORBIDDEN");
    expect((await withKey(admin, "key", "ls")).stdout).toMatch(/^[0-9a-f]{16} +submit +running 1 .* ci$/m);
    expect((await withKey(admin, "key", "rm", String(ci.id))).stdout).toBe(`Removed ${ci.id}\n`);
    expect((await withKey(String(ci.key), "job", "ls")).stderr).toContain("code: UNAUTHENTICATED");
  });
});
