import { describe, expect, test } from "bun:test";
import http from "node:http";
import { FlurryError } from "../../errors/errors.ts";
import { AgentError } from "../../guest-agent/protocol/mod.ts";
import type { Checkpoint, Page, Vm, VmExecLine, VmExecResult, VmForkResult } from "../../runtime/api/mod.ts";
import {
  eventually,
  GatewaySandbox,
  idleRuntime,
  linesOf,
  StreamReader,
} from "../support/gateway-sandbox.ts";
import { ScriptedVms } from "../support/scripted-vms.ts";

const NDJSON = "application/x-ndjson";

async function open(vms = new ScriptedVms(), options: Parameters<typeof GatewaySandbox.open>[0] = {}) {
  return await GatewaySandbox.open({ runtime: () => ({ ...idleRuntime(), vms }), ...options });
}

function create(gateway: GatewaySandbox, json: object, key?: string): Promise<Vm> {
  return gateway.json<Vm>("/v1/vms", { method: "POST", json, key }, 201);
}

const post = (json: object, key?: string) => ({ method: "POST", json, key });

describe("VMs", () => {
  test("are made of an image, a worker and a checkpoint, listed and ended", async () => {
    const vms = new ScriptedVms();
    await using gateway = await open(vms);
    const spec = {
      image: "base",
      memoryMiB: 128,
      cpus: 2,
      warmUp: ["true"],
      files: [{ path: "/a", text: "a" }],
    };
    const response = await gateway.fetch("/v1/vms", post({ worker: spec }));
    expect([response.status, response.headers.get("location")]).toEqual([201, "/v1/vms/vm-1"]);
    const first: Vm = await response.json();
    expect(first).toEqual({
      ...{ id: "vm-1", owner: "", image: "base", index: 0, generation: 0 },
      ...{ createdAt: "2026-01-31T12:00:00.000Z", memoryBytes: 256 * 2 ** 20, privateBytes: 3 * 2 ** 20 },
    });
    await gateway.json(
      "/v1/workers/w",
      { method: "PUT", json: { ...spec, command: ["date"], env: { A: "a" } } },
      201,
    );
    await create(gateway, { worker: "w" });
    await create(gateway, { worker: "w@1" });
    const [a, b, c] = vms.made.map(({ source }) => ("family" in source ? source : undefined));
    // What is each task's makes no other parent.
    expect(new Set([a?.family, b?.family, c?.family]).size).toBe(1);
    expect(a?.spec).toMatchObject(spec);
    expect(vms.made[0]?.owner).toEqual({ id: "" });
    const kept = await gateway.fetch("/v1/vms/vm-1/checkpoints", post({ name: "warm" }));
    expect([kept.status, kept.headers.get("location")]).toEqual([201, "/v1/checkpoints/warm"]);
    expect(await kept.json()).toEqual({
      ...{ name: "warm", owner: "", image: "base", vm: "vm-1", generation: 0 },
      ...{ createdAt: "1970-01-01T00:00:01.000Z", memoryBytes: 256 * 2 ** 20, storedBytes: 40 * 2 ** 20 },
    });
    expect(await create(gateway, { checkpoint: "warm" })).toMatchObject({ id: "vm-4", checkpoint: "warm" });
    expect(await gateway.json<Vm>("/v1/vms/vm-1")).toEqual(first);
    const { items } = await gateway.json<Page<Vm>>("/v1/vms");
    expect(items.map(({ id }) => id)).toEqual(["vm-1", "vm-2", "vm-3", "vm-4"]);
    await gateway.json("/v1/vms/vm-1/fork", post({ count: 2 }));
    const ended = await gateway.json<{ ids: string[] }>("/v1/vms/vm-1", { method: "DELETE" });
    expect(ended.ids).toEqual(["vm-1", "vm-5", "vm-6"]);
    expect(await gateway.problem("/v1/vms/vm-1", { method: "DELETE" })).toMatchObject({
      code: "VM_NOT_FOUND",
    });
  });

  test.each([
    [{}],
    [{ worker: { image: "base" }, checkpoint: "a" }],
    [{ worker: { image: "base", command: ["true"] } }],
    [{ worker: { memoryMiB: 128 } }],
    [{ worker: { image: "base", memoryMiB: 1 } }],
    [{ worker: "No Name" }],
    [{ checkpoint: "../x" }],
  ])("are not made of %j", async (json) => {
    await using gateway = await open();
    expect(await gateway.problem("/v1/vms", post(json))).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
  });

  test("are refused where something is not there, exists already, or cannot be", async () => {
    const vms = new ScriptedVms();
    await using gateway = await open(vms);
    const { id } = await create(gateway, { worker: { image: "base" } });
    await gateway.json(`/v1/vms/${id}/checkpoints`, post({ name: "a" }), 201);
    const codes = async (asked: [string, Parameters<typeof gateway.problem>[1]?][]) => {
      const problems = await Promise.all(asked.map(([path, init]) => gateway.problem(path, init)));
      return problems.map(({ status, code }) => `${status} ${code}`);
    };
    expect(
      await codes([
        ["/v1/vms", post({ worker: "none" })],
        ["/v1/vms", post({ checkpoint: "none" })],
        ["/v1/vms/vm-9"],
        ["/v1/vms/vm-9/fork", post({ count: 1 })],
        ["/v1/vms/vm-9/exec", post({ argv: ["true"] })],
        ["/v1/vms/vm-9/files/etc/hostname"],
        ["/v1/vms/vm-9/files/x", { method: "PUT", body: "x" }],
        ["/v1/vms/vm-9/checkpoints", post({ name: "b" })],
        ["/v1/checkpoints/none"],
        ["/v1/checkpoints/none", { method: "DELETE" }],
        [`/v1/vms/${id}/checkpoints`, post({ name: "a" })],
        [`/v1/vms/${id}/fork`, post({ count: 0 })],
        [`/v1/vms/${id}/fork`, post({ count: 1001 })],
        ["/v1/vms/VM%20x"],
      ]),
    ).toEqual([
      "404 WORKER_NOT_FOUND",
      "404 CHECKPOINT_NOT_FOUND",
      ...Array<string>(6).fill("404 VM_NOT_FOUND"),
      "404 CHECKPOINT_NOT_FOUND",
      "404 CHECKPOINT_NOT_FOUND",
      "409 CHECKPOINT_EXISTS",
      ...Array<string>(3).fill("400 BAD_ARGUMENT"),
    ]);
  });

  test("are not there where the runtime has none, but their receipts are asked for as ever", async () => {
    await using gateway = await GatewaySandbox.open();
    const asked: [string, Parameters<typeof gateway.problem>[1]?][] = [
      ["/v1/vms"],
      ["/v1/vms", post({ worker: { image: "base" } })],
      ["/v1/vms/vm-1/exec", post({ argv: ["true"] })],
      ["/v1/vms/vm-1/files/etc/hostname"],
      ["/v1/checkpoints"],
    ];
    for (const [path, init] of asked) {
      expect(await gateway.problem(path, init)).toMatchObject({ status: 501, code: "VMS_UNSUPPORTED" });
    }
    expect(await gateway.problem("/v1/vms/vm-1/receipt")).toMatchObject({ code: "RECEIPT_NOT_FOUND" });
  });

  test("tell how each child of a fork came out, and nothing of what is inside", async () => {
    const vms = new ScriptedVms();
    vms.failing = (index) => {
      if (index === 2) return new FlurryError("CHILD_DIED", "It died", { hint: "try again" });
      return index === 3 ? new Error("secret path") : undefined;
    };
    await using gateway = await open(vms);
    const { id } = await create(gateway, { worker: { image: "base" } });
    const { items } = await gateway.json<{ items: VmForkResult[] }>(`/v1/vms/${id}/fork`, post({ count: 4 }));
    expect(items).toMatchObject([
      { status: "fulfilled", vm: { id: "vm-2", parent: id, index: 1, generation: 1 } },
      { status: "rejected", error: { code: "CHILD_DIED", message: "It died", hint: "try again" } },
      { status: "rejected", error: { code: "INTERNAL" } },
      { status: "fulfilled", vm: { id: "vm-3", index: 4 } },
    ]);
    expect(JSON.stringify(items)).not.toContain("secret path");
  });

  test("are not made for who has gone away", async () => {
    const vms = new ScriptedVms();
    let aborted = false;
    vms.before = (signal) =>
      new Promise((_, reject) => {
        signal.addEventListener("abort", () => {
          aborted = true;
          reject(new FlurryError("ABORTED", "Aborted by the caller"));
        });
      });
    await using gateway = await open(vms);
    const gone = new AbortController();
    const asked = fetch(`${gateway.url}/v1/vms`, {
      ...{ method: "POST", headers: { "content-type": "application/json" }, signal: gone.signal },
      body: JSON.stringify({ worker: { image: "base" } }),
    });
    await eventually(() => vms.made.length === 1);
    gone.abort();
    await expect(asked).rejects.toThrow();
    await eventually(() => aborted);
    expect(vms.vms.size).toBe(0);
  });
});

describe("keys", () => {
  test("see their own VMs and checkpoints, an admin all, whose forks stay their owner's", async () => {
    const vms = new ScriptedVms();
    await using gateway = await open(vms);
    const admin = await gateway.key(["admin"]);
    const a = await gateway.key(["submit", "read"], { vms: 3 });
    const b = await gateway.key(["submit", "read"]);
    const { id } = await create(gateway, { worker: { image: "base" } }, a.key);
    await gateway.json(`/v1/vms/${id}/checkpoints`, post({ name: "mine" }, a.key), 201);
    const ids = async (path: string, key: string) => {
      const { items } = await gateway.json<Page<Vm | Checkpoint>>(path, { key });
      return items.map((item) => ("id" in item ? item.id : item.name));
    };
    expect([await ids("/v1/vms", a.key), await ids("/v1/vms", b.key)]).toEqual([[id], []]);
    expect([await ids("/v1/checkpoints", b.key), await ids("/v1/checkpoints", admin.key)]).toEqual([
      [],
      ["mine"],
    ]);
    const others: [string, Parameters<typeof gateway.problem>[1]][] = [
      [`/v1/vms/${id}`, {}],
      [`/v1/vms/${id}`, { method: "DELETE" }],
      [`/v1/vms/${id}/fork`, post({ count: 1 })],
      [`/v1/vms/${id}/exec`, post({ argv: ["true"] })],
      [`/v1/vms/${id}/files/a`, {}],
      [`/v1/vms/${id}/files/a`, { method: "PUT", body: "a" }],
      [`/v1/vms/${id}/checkpoints`, post({ name: "b" })],
      ["/v1/checkpoints/mine", {}],
      ["/v1/checkpoints/mine", { method: "DELETE" }],
      ["/v1/vms", post({ checkpoint: "mine" })],
    ];
    for (const [path, init] of others) {
      const { status, code } = await gateway.problem(path, { ...init, key: b.key });
      expect([path, status, code.replace(/^(VM|CHECKPOINT)_/, "")]).toEqual([path, 404, "NOT_FOUND"]);
    }
    // Room for two more, whoever asks.
    const { items } = await gateway.json<{ items: VmForkResult[] }>(
      `/v1/vms/${id}/fork`,
      post({ count: 3 }, admin.key),
    );
    expect(items).toMatchObject([
      { vm: { owner: a.id } },
      { vm: { owner: a.id } },
      { status: "rejected", error: { code: "LIMIT_REACHED" } },
    ]);
    const full = [post({ count: 1 }, admin.key), post({ count: 1 }, a.key)];
    for (const init of full) {
      expect(await gateway.problem(`/v1/vms/${id}/fork`, init)).toMatchObject({
        ...{ status: 429, code: "LIMIT_REACHED", retryable: true },
      });
    }
    expect(await gateway.problem("/v1/vms", post({ worker: { image: "base" } }, a.key))).toMatchObject({
      status: 429,
    });
    await create(gateway, { worker: { image: "base" } }, b.key);
    expect((await gateway.fetch("/v1/checkpoints/mine", { method: "DELETE", key: admin.key })).status).toBe(
      204,
    );
    expect(vms.kept).toEqual([]);
  });

  test("of two with checkpoints of one name: each has its own, and so has an admin", async () => {
    const vms = new ScriptedVms();
    await using gateway = await open(vms);
    const admin = await gateway.key(["admin"]);
    const a = await gateway.key(["submit", "read"]);
    for (const { key } of [a, admin]) {
      const { id } = await create(gateway, { worker: { image: "base" } }, key);
      await gateway.json(`/v1/vms/${id}/checkpoints`, post({ name: "x" }, key), 201);
    }
    const shown = await gateway.json<Checkpoint>("/v1/checkpoints/x", { key: admin.key });
    expect(shown.owner).toBe(admin.id);
    await gateway.fetch("/v1/checkpoints/x", { method: "DELETE", key: admin.key });
    expect(vms.kept.map(({ owner }) => owner)).toEqual([a.id]);
  });
});

describe("POST /v1/vms/{id}/exec", () => {
  const exec = (gateway: GatewaySandbox, json: object) => {
    return gateway.json<VmExecResult>("/v1/vms/vm-1/exec", post(json));
  };
  const lines = async (gateway: GatewaySandbox, json: object) => {
    const response = await gateway.fetch("/v1/vms/vm-1/exec", { ...post(json), headers: { accept: NDJSON } });
    expect(response.headers.get("content-type")).toBe(NDJSON);
    return linesOf<VmExecLine>(await response.text());
  };

  async function withVm(script: ScriptedVms["script"]) {
    const vms = new ScriptedVms();
    vms.script = script;
    vms.add({});
    return { vms, gateway: await open(vms) };
  }

  test("gives what a program was told, printed, and ended with", async () => {
    const { gateway } = await withVm(async ({ argv, options, input, print }) => {
      await print(`${argv.join(" ")} ${JSON.stringify(options.env)} ${options.cwd} ${options.timeoutMs}\n`);
      if (options.stdin) await print(await input(), "stderr");
      return argv[1] === "7" ? { code: 7 } : { signal: "SIGKILL" };
    });
    await using _closed = gateway;
    const asked = { argv: ["exit", "7"], env: { A: "ä" }, cwd: "/tmp", timeoutMs: 5000, stdin: "in" };
    expect(await exec(gateway, asked)).toEqual({
      ...{ exitCode: 7, stdout: 'exit 7 {"A":"ä"} /tmp 5000\n', stderr: "in" },
      ...{ stdoutTruncated: false, stderrTruncated: false },
    });
    expect(await exec(gateway, { argv: ["x"], stdin: { base64: "aGk=" } })).toMatchObject({
      ...{ signal: "SIGKILL", stderr: "hi" },
    });
  });

  test("keeps a MiB of each output, whole characters, and reads the rest", async () => {
    const { gateway } = await withVm(async ({ print }) => {
      await print(`a${"ä".repeat(700_000)}`);
      await print("x".repeat(1024 * 1024), "stderr");
      return { code: 0 };
    });
    await using _closed = gateway;
    const { stdout, stdoutTruncated, stderr, stderrTruncated } = await exec(gateway, { argv: ["x"] });
    expect([stdoutTruncated, stderrTruncated]).toEqual([true, false]);
    expect(stdout).toBe(`a${"ä".repeat(524_287)}`);
    expect(stderr).toHaveLength(1024 * 1024);
  });

  test("says what was wrong with a program as problems", async () => {
    const failures: AgentError[] = [
      new AgentError("AGENT_TIMEOUT", "It took more than 5 ms"),
      new AgentError("AGENT_REFUSED", "The guest has no memory"),
    ];
    const { gateway } = await withVm(() => Promise.reject(failures.shift()));
    await using _closed = gateway;
    const problem = (json: object) => gateway.problem("/v1/vms/vm-1/exec", post(json));
    expect(await problem({ argv: ["x"], timeoutMs: 5 })).toMatchObject({
      status: 504,
      code: "AGENT_TIMEOUT",
    });
    expect(await problem({ argv: ["x"] })).toMatchObject({ status: 500, code: "AGENT_REFUSED" });
    expect(await problem({ argv: ["missing"] })).toMatchObject({
      status: 400,
      detail: expect.stringContaining("No such file"),
    });
    expect(await problem({ argv: [] })).toMatchObject({ status: 400 });
    expect(await problem({ argv: [""] })).toMatchObject({ status: 400 });
    expect(await problem({ argv: ["x"], cwd: "../x" })).toMatchObject({ status: 400 });
  });

  test("streams each piece as it is printed, bytes that are no text too, and the end", async () => {
    const goOn = Promise.withResolvers<void>();
    const { gateway } = await withVm(async ({ print }) => {
      await print("one\n");
      await goOn.promise;
      await print(new Uint8Array([0xff, 0]), "stderr");
      return { code: 3 };
    });
    await using _closed = gateway;
    const response = await gateway.fetch("/v1/vms/vm-1/exec", {
      ...post({ argv: ["x"] }),
      headers: { accept: NDJSON },
    });
    await using reader = new StreamReader(response);
    expect(linesOf<VmExecLine>(await reader.until("}\n"))).toEqual([{ stream: "stdout", text: "one\n" }]);
    goOn.resolve();
    expect(linesOf<VmExecLine>(await reader.rest())).toEqual([
      { stream: "stderr", base64: "/wA=" },
      { exitCode: 3 },
    ]);
  });

  test("ends a stream with what the VM failed of", async () => {
    const { gateway } = await withVm(async ({ print }) => {
      await print("a");
      throw new AgentError("AGENT_CLOSED", "The VM is gone");
    });
    await using _closed = gateway;
    const shown = await lines(gateway, { argv: ["x"] });
    expect(shown.at(-1)).toMatchObject({ error: { code: "AGENT_CLOSED", message: "The VM is gone" } });
  });

  test.each(["application/json", NDJSON])("kills the program of who went away (%s)", async (accept) => {
    let killed = false;
    let started = false;
    const { gateway } = await withVm(({ signal, print }) => {
      started = true;
      void print("a").catch(() => undefined);
      return new Promise((resolve) => {
        signal.addEventListener("abort", () => {
          killed = true;
          resolve({ signal: "SIGKILL" });
        });
      });
    });
    await using _closed = gateway;
    const body = JSON.stringify({ argv: ["x"] });
    const request = http.request(`${gateway.url}/v1/vms/vm-1/exec`, {
      ...{ method: "POST", headers: { accept, "content-type": "application/json" } },
    });
    request.on("error", () => undefined);
    request.end(body);
    await eventually(() => started);
    request.destroy();
    await eventually(() => killed);
  });

  test("kills the program of a key that was removed, and tells it no more", async () => {
    let killed = false;
    const goOn = Promise.withResolvers<void>();
    const { gateway, vms } = await withVm(async ({ signal, print }) => {
      signal.addEventListener("abort", () => {
        killed = true;
      });
      await goOn.promise;
      await print("secret");
      return await new Promise(() => undefined);
    });
    await using _closed = gateway;
    await gateway.key(["admin"]);
    const { id, key } = await gateway.key(["submit"]);
    vms.add({ owner: id });
    const init = { ...post({ argv: ["x"] }, key), headers: { accept: NDJSON } };
    const response = await gateway.fetch("/v1/vms/vm-2/exec", init);
    await gateway.context.store.keys.remove(id);
    goOn.resolve();
    expect((await response.text()).trim()).toBe("");
    await eventually(() => killed);
  });
});

describe("/v1/vms/{id}/files/{path}", () => {
  const url = (path: string) => `/v1/vms/vm-1/files/${path.split("/").map(encodeURIComponent).join("/")}`;

  async function withVm(options: Parameters<typeof open>[1] = {}) {
    const vms = new ScriptedVms();
    vms.add({});
    return { vms, gateway: await open(vms, options) };
  }

  test.each([
    "etc/hostname",
    "a dir/ä?.txt",
    "a%2fb/%",
    "new\nline",
    "back\\slash",
    "#;:@&=+$,'\"<>",
    "...",
    "x".repeat(200),
  ])("takes a file at %j and gives it back, byte for byte", async (path) => {
    const { gateway, vms } = await withVm();
    await using _closed = gateway;
    const body = new Uint8Array(100_000).map((_, at) => at % 251);
    const put = await gateway.json<object>(`${url(path)}?mode=750`, { method: "PUT", body });
    expect(put).toEqual({ path: `/${path}`, size: body.byteLength });
    expect([...vms.files.keys()]).toEqual([`vm-1 /${path}`]);
    const got = await gateway.fetch(url(path));
    expect(got.headers.get("content-type")).toBe("application/octet-stream");
    expect([got.headers.get("flurry-mode"), got.headers.get("last-modified")]).toEqual([
      "750",
      "Thu, 01 Jan 1970 00:16:40 GMT",
    ]);
    expect(new Uint8Array(await got.arrayBuffer())).toEqual(body);
    const head = await gateway.fetch(url(path), { method: "HEAD" });
    expect([head.status, await head.text()]).toEqual([200, ""]);
  });

  test.each(["a//b", "a%2F..%2Fb", "%2e%2e%2fb", "a%00", "/etc", "a/"])(
    "refuses the path %j",
    async (path) => {
      const { gateway, vms } = await withVm();
      await using _closed = gateway;
      for (const init of [{}, { method: "PUT", body: "x" }]) {
        const response = await gateway.fetch(`/v1/vms/vm-1/files/${path}`, init);
        expect([response.status, (await response.json()).code]).toEqual([400, "BAD_ARGUMENT"]);
      }
      expect(vms.files.size).toBe(0);
    },
  );

  test("takes what says that it is JSON, and is none, as it is; nothing at all too", async () => {
    const { gateway, vms } = await withVm();
    await using _closed = gateway;
    const headers = { "content-type": "application/json" };
    await gateway.json(url("a.json"), { method: "PUT", headers, body: "{not json" });
    await gateway.json(url("empty"), { method: "PUT", body: "" });
    await gateway.json(url("none"), { method: "PUT" });
    const sizes = [...vms.files.values()].map(({ bytes, mode }) => [bytes.byteLength, mode]);
    expect(sizes).toEqual([
      [9, 0o644],
      [0, 0o644],
      [0, 0o644],
    ]);
  });

  test("says what is not there, may not be, or takes too long", async () => {
    const { gateway } = await withVm({ limits: { streamBytes: 1000, bodySilenceMs: 50 } });
    await using _closed = gateway;
    expect(await gateway.problem(url("none"))).toMatchObject({ status: 404, code: "FILE_NOT_FOUND" });
    const put = (path: string, body: BodyInit = "x") => gateway.problem(path, { method: "PUT", body });
    expect(await put(url("proc/x"))).toMatchObject({
      status: 400,
      detail: expect.stringContaining("Permission denied"),
    });
    expect(await put(`${url("a")}?mode=999`)).toMatchObject({ status: 400, code: "BAD_ARGUMENT" });
    expect(await put(url("a"), "x".repeat(1001))).toMatchObject({ status: 413, code: "BODY_TOO_LARGE" });
    const silent = new ReadableStream<Uint8Array>({ start: (to) => to.enqueue(new Uint8Array(1)) });
    const asked = { method: "PUT", body: silent, duplex: "half" } as RequestInit;
    expect(await gateway.problem(url("a"), asked)).toMatchObject({ status: 408, code: "BODY_TIMEOUT" });
  });
});
