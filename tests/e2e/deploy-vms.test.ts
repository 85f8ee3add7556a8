import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type CliResult, type CliRun, CliSandbox } from "../support/cli.ts";

setDefaultTimeout(300_000);

const MIB = 1024 * 1024;
/** Far more than the windows of a body and the garbage of streaming; whoever held a body would need more. */
const BODY_BYTES = 128 * MIB;

/** A worker with a session for each client, which also takes and gives bodies of any length. */
function source(name: string): string {
  return `
let asked = 0;
export default {
  setup() { asked = 100; },
  async fetch(request: Request, env: { WORD: string }, ctx: { vm: { id: string } }) {
    const url = new URL(request.url);
    if (url.pathname === "/up") {
      let bytes = 0;
      for await (const chunk of request.body!) bytes += chunk.length;
      return Response.json({ bytes });
    }
    if (url.pathname === "/down") {
      let left = Number(url.searchParams.get("bytes"));
      const block = new Uint8Array(65_536).fill(7);
      const pull = (controller: ReadableStreamDefaultController) => {
        const count = Math.min(block.length, left);
        left -= count;
        if (count > 0) controller.enqueue(block.subarray(0, count));
        else controller.close();
      };
      return new Response(new ReadableStream({ pull }));
    }
    console.log("asked by", request.headers.get("x-client"));
    return Response.json({ name: "${name}", word: env.WORD, asked: ++asked, vm: ctx.vm.id });
  },
};`;
}

const FAILING = `
interface Settings { host: string }
const settings: Settings | undefined = undefined;

export default {
  setup() {
    console.log(settings!.host);
  },
  fetch: () => new Response("never"),
};`;

let sandbox: CliSandbox;
let serving: CliRun;
let url: string;

beforeAll(async () => {
  sandbox = new CliSandbox();
  serving = sandbox.start([
    "serve",
    "--listen",
    "127.0.0.1:0",
    "--data",
    "data",
    "--children",
    "8",
    "--json",
  ]);
  const [line = ""] = await serving.until(/^\{"event":"ready".*\}$/m);
  url = JSON.parse(line).url;
});

afterAll(async () => {
  serving.kill("SIGTERM");
  expect((await serving.ended).status).toBe(0);
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

function flurry(...args: string[]): Promise<CliResult> {
  return sandbox.flurry(args, { env: { FLURRY_URL: url, FLURRY_KEY: "" } });
}

async function deploy(text: string, ...args: string[]): Promise<CliResult> {
  writeFileSync(join(sandbox.directory, "worker.ts"), text);
  return await flurry("deploy", "worker.ts", "--name", "shop", "--memory", "256", ...args);
}

/** A client that keeps its cookie. */
class Client {
  readonly #name: string;
  cookie: string | undefined;

  constructor(name: string) {
    this.#name = name;
  }

  async ask(): Promise<{ name: string; word: string; asked: number; vm: string }> {
    const headers = { "x-client": this.#name, ...(this.cookie && { cookie: this.cookie }) };
    const answer = await fetch(`${url}/w/shop/`, { headers });
    const [cookie] = answer.headers.getSetCookie();
    if (cookie) this.cookie = cookie.slice(0, cookie.indexOf(";"));
    expect(answer.status).toBe(200);
    return await answer.json();
  }
}

/** The most bytes that a process has had resident since `forgetPeak`. */
function peakOf(pid: number): number {
  return Number(/^VmHWM:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))![1]) * 1024;
}

/** Source: proc(5), clear_refs: 5 sets the peak to what is resident now. */
function forgetPeak(pid: number): number {
  writeFileSync(`/proc/${pid}/clear_refs`, "5");
  return peakOf(pid);
}

describe("flurry deploy, with VMs", () => {
  test("deploys versions, gives each client a session, and goes back from what does not load", async () => {
    const options = ["--isolation", "session", "--env", "WORD=first"];
    const first = await deploy(source("one"), ...options);
    expect(first).toMatchObject({ status: 0, stdout: `shop@1 ${url}/w/shop/\n` });
    const [ann, ben] = [new Client("ann"), new Client("ben")];
    const begun = await ann.ask();
    expect(begun).toMatchObject({ name: "one", word: "first", asked: 101 });
    expect(await ben.ask()).toMatchObject({ asked: 101 });
    expect(ann.cookie).toMatch(/^flurry-session=/);
    expect(ben.cookie).not.toBe(ann.cookie);
    expect(await ann.ask()).toEqual({ ...begun, asked: 102 });
    expect((await ben.ask()).vm).not.toBe(begun.vm);

    const failed = await deploy(FAILING, ...options);
    expect(failed.status).toBe(2);
    expect(failed.stderr).toMatch(/shop@2 is not ready: worker\.ts does not load: .*settings\.host/);
    expect(failed.stderr).toMatch(/\n {4}at setup \(.*worker\.ts:7:\d+\)\n/);
    expect(failed.stderr).toContain("shop@1 is current again\n  code: WORKER_LOAD_FAILED\n");
    // Who has a session keeps it.
    expect(await ann.ask()).toEqual({ ...begun, asked: 103 });

    const logs = await flurry("worker", "logs", "shop");
    expect(logs.stdout).toMatch(/\[vm-[0-9a-f]+\] asked by ann\n/);
    expect((await flurry("worker", "ls")).stdout).toMatch(/^shop@1 +current +ready +js /m);

    expect((await deploy(source("three"), ...options)).stdout).toStartWith("shop@3 ");
    let next = await ann.ask();
    while (next.name === "one") next = await ann.ask();
    expect(next).toMatchObject({ name: "three", asked: 101 });
    const back = await flurry("worker", "rollback", "shop");
    expect(back).toMatchObject({ status: 0, stdout: "shop@1 is current\n" });
    expect(back.stderr).toContain("shop@2 is left out: it has failed");
    while (next.name === "three") next = await ann.ask();
    expect(next.name).toBe("one");
  });

  test("streams bodies in both directions, of which the gateway holds little", async () => {
    const download = async (bytes: number) => {
      const answer = await fetch(`${url}/w/shop/down?bytes=${bytes}`);
      let received = 0;
      for await (const chunk of answer.body!) received += chunk.length;
      expect(received).toBe(bytes);
    };
    // After that its memory has the garbage of streaming in it.
    await download(BODY_BYTES / 2);
    const before = forgetPeak(serving.pid);
    await download(BODY_BYTES);
    let left = BODY_BYTES;
    const block = new Uint8Array(65_536).fill(7);
    const body = new ReadableStream({
      pull(controller) {
        const count = Math.min(block.length, left);
        left -= count;
        if (count > 0) controller.enqueue(block.subarray(0, count));
        else controller.close();
      },
    });
    const up = await fetch(`${url}/w/shop/up`, { method: "POST", body });
    expect([up.status, await up.json()]).toEqual([200, { bytes: BODY_BYTES }]);
    const grown = peakOf(serving.pid) - before;
    process.stderr.write(
      `gateway: ${(grown / MIB).toFixed(1)} MiB more at its most for ${BODY_BYTES / MIB} MiB\n`,
    );
    expect(grown).toBeLessThan(BODY_BYTES);
  });

  test("removes a worker with its sessions", async () => {
    expect((await flurry("worker", "rm", "shop")).stdout).toBe("Removed shop\n");
    expect((await fetch(`${url}/w/shop/`)).status).toBe(404);
  });
});
