import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { heldBytesOf } from "../../runtime/fork/child.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { type CliResult, type CliRun, CliSandbox } from "../support/cli.ts";

setDefaultTimeout(300_000);

const MIB = 1024 * 1024;
const GUEST_BYTES = 256 * MIB;
/** As much as the guest has, and far more than the garbage of streaming: nobody can hold it. */
const BODY_BYTES = 256 * MIB;

/** A worker with a session for each client, which also takes and gives bodies of any length. */
function source(name: string): string {
  return `
import { existsSync, readFileSync, writeFileSync } from "node:fs";
let asked = 0;
const clients: string[] = [];
/** What others have left wherever something can be left, and leaves as much. */
function traces(): string[] {
  const left = [globalThis.trace, Bun.trace, process.env.TRACE, existsSync("/tmp/trace") && readFileSync("/tmp/trace", "utf8")];
  return left.filter((trace) => trace);
}
function leave(client: string): void {
  clients.push(client);
  globalThis.trace = Bun.trace = process.env.TRACE = client;
  writeFileSync("/tmp/trace", client);
}
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
    const client = request.headers.get("x-client")!;
    console.log("asked by", client);
    const seen = [...clients, ...traces()];
    leave(client);
    return Response.json({ name: "${name}", word: env.WORD, asked: ++asked, vm: ctx.vm.id, seen });
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
  // Fewer at a time than there are sessions: one that is away lets others run.
  const places = ["--children", "2"];
  serving = sandbox.start(["serve", "--listen", "127.0.0.1:0", "--data", "data", ...places, "--json"]);
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

interface Seen {
  name: string;
  word: string;
  asked: number;
  vm: string;
  /** What earlier requests have left in the VM: the names of their clients. */
  seen: string[];
}

/** A client that keeps its cookie. */
class Client {
  readonly #name: string;
  cookie: string | undefined;

  constructor(name: string) {
    this.#name = name;
  }

  async ask(): Promise<Seen> {
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

/** The most memory of its own that a VM has had. Nothing tells of a process's memory but looking. */
class GuestMemory implements Disposable {
  most = 0;
  readonly #timer: ReturnType<typeof setInterval>;

  constructor() {
    this.#timer = setInterval(() => {
      const held = processesOf(sandbox.run).map(heldBytesOf);
      this.most = Math.max(this.most, ...held);
    }, 200);
  }

  [Symbol.dispose](): void {
    clearInterval(this.#timer);
  }
}

/** Blocks up to so many bytes. */
function bodyOf(bytes: number): ReadableStream<Uint8Array> {
  let left = bytes;
  const block = new Uint8Array(65_536).fill(7);
  return new ReadableStream({
    pull(controller) {
      const count = Math.min(block.length, left);
      left -= count;
      if (count > 0) controller.enqueue(block.subarray(0, count));
      else controller.close();
    },
  });
}

/** Takes a body of so many bytes from the worker; returns MiB/s. */
async function download(bytes: number): Promise<string> {
  const began = performance.now();
  const answer = await fetch(`${url}/w/shop/down?bytes=${bytes}`);
  let received = 0;
  for await (const chunk of answer.body!) received += chunk.length;
  expect(received).toBe(bytes);
  return rateOf(bytes, began);
}

/** Gives the worker a body of so many bytes; returns MiB/s. */
async function upload(bytes: number): Promise<string> {
  const began = performance.now();
  const answer = await fetch(`${url}/w/shop/up`, { method: "POST", body: bodyOf(bytes) });
  expect([answer.status, await answer.json()]).toEqual([200, { bytes }]);
  return rateOf(bytes, began);
}

function rateOf(bytes: number, began: number): string {
  return ((bytes / MIB / (performance.now() - began)) * 1000).toFixed(1);
}

describe("flurry deploy, with VMs", () => {
  test("deploys versions, gives each client a session, and goes back from what does not load", async () => {
    const options = ["--isolation", "session", "--env", "WORD=first"];
    const first = await deploy(source("one"), ...options);
    expect(first).toMatchObject({ status: 0, stdout: `shop@1 ${url}/w/shop/\n` });
    const [ann, ben] = [new Client("ann"), new Client("ben")];
    const begun = await ann.ask();
    expect(begun).toMatchObject({ name: "one", word: "first", asked: 101 });
    expect(begun.seen).toEqual([]);
    expect(await ben.ask()).toMatchObject({ asked: 101, seen: [] });
    expect(ann.cookie).toMatch(/^flurry-session=/);
    expect(ben.cookie).not.toBe(ann.cookie);
    expect(await ann.ask()).toEqual({ ...begun, asked: 102, seen: Array(5).fill("ann") });
    const other = await ben.ask();
    expect(other).toMatchObject({ asked: 102, seen: Array(5).fill("ben") });
    expect(other.vm).not.toBe(begun.vm);

    const failed = await deploy(FAILING, ...options);
    expect(failed.status).toBe(2);
    expect(failed.stderr).toMatch(/shop@2 is not ready: worker\.ts does not load: .*settings\.host/);
    expect(failed.stderr).toMatch(/\n {4}at setup \(.*worker\.ts:7:\d+\)\n/);
    expect(failed.stderr).toContain("shop@1 is current again\n  code: WORKER_LOAD_FAILED\n");
    // Who has a session keeps it.
    expect(await ann.ask()).toMatchObject({ vm: begun.vm, asked: 103 });

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

  test("streams bodies in both directions, of which neither the gateway nor the guest holds much", async () => {
    await download(BODY_BYTES / 8);
    await upload(BODY_BYTES / 8);
    // From here on its memory has the garbage of streaming in it.
    const before = forgetPeak(serving.pid);
    using guests = new GuestMemory();
    const down = await download(BODY_BYTES);
    const up = await upload(BODY_BYTES);
    const grown = peakOf(serving.pid) - before;
    const mib = (bytes: number) => (bytes / MIB).toFixed(0);
    process.stderr.write(
      `${mib(BODY_BYTES)} MiB: ${down} MiB/s down, ${up} MiB/s up; the gateway had ${mib(grown)} MiB more at its most, a VM ${mib(guests.most)} MiB of its own\n`,
    );
    expect(grown).toBeLessThan(BODY_BYTES / 2);
    expect(guests.most).toBeGreaterThan(0);
    expect(guests.most).toBeLessThan(GUEST_BYTES);
  });

  test("removes a worker with its sessions", async () => {
    expect((await flurry("worker", "rm", "shop")).stdout).toBe("Removed shop\n");
    expect((await fetch(`${url}/w/shop/`)).status).toBe(404);
  });
});
