import { describe, expect, test } from "bun:test";
import { FlurryClient, type VmOutput } from "../../runtime/client/mod.ts";
import { type Answer, ScriptedServer, sendJson } from "../support/client-server.ts";

async function connect(answer: Answer) {
  const server = await ScriptedServer.start(answer);
  const client = new FlurryClient({ url: server.url, retries: 0 });
  return { server, client, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** Answers with these lines, and ends, or breaks off. */
function linesOf(lines: object[], isCut = false): Answer {
  return (response) => {
    response.writeHead(200, { "content-type": "application/x-ndjson" });
    response.write(`\n${lines.map((line) => `${JSON.stringify(line)}\n\n`).join("")}`);
    if (isCut) setTimeout(() => response.destroy(), 20);
    else response.end();
  };
}

async function outputOf(answer: Answer): Promise<{ pieces: unknown[]; error: unknown }> {
  await using peer = await connect(answer);
  const pieces: unknown[] = [];
  try {
    for await (const piece of peer.client.vms.execStream("vm-1", { argv: ["x"] })) pieces.push(shown(piece));
  } catch (error) {
    return { pieces, error };
  }
  return { pieces, error: undefined };
}

function shown(piece: VmOutput) {
  return "bytes" in piece ? [piece.stream, [...piece.bytes]] : piece;
}

describe("execStream()", () => {
  test("gives bytes as they were printed, and how the program ended", async () => {
    const text = { stream: "stdout", text: "ä" };
    const raw = { stream: "stderr", base64: "/wA=" };
    const { pieces, error } = await outputOf(linesOf([text, raw, { signal: "SIGSEGV" }]));
    expect(pieces).toEqual([["stdout", [0xc3, 0xa4]], ["stderr", [0xff, 0]], { signal: "SIGSEGV" }]);
    expect(error).toBeUndefined();
  });

  const text = { stream: "stdout", text: "a" };
  test.each<[string, Answer, string]>([
    ["ends before the program has", linesOf([text]), "GATEWAY_FAILED"],
    ["is cut off", linesOf([text], true), "GATEWAY_UNREACHABLE"],
    ["says what the program was stopped by", linesOf([text, failureOf("AGENT_TIMEOUT")]), "AGENT_TIMEOUT"],
    ["has a code that nobody knows", linesOf([text, failureOf("NEW_CODE")]), "GATEWAY_FAILED"],
    ["has a line of another kind", linesOf([text, { exit: 0 }]), "GATEWAY_FAILED"],
  ])("fails when the stream %s", async (_what, answer, code) => {
    const { pieces, error } = await outputOf(answer);
    expect(pieces).toEqual([["stdout", [97]]]);
    expect(error).toMatchObject({ code });
  });

  test("closes the connection when its loop is left", async () => {
    const closed = Promise.withResolvers<void>();
    await using peer = await connect((response) => {
      response.on("close", () => closed.resolve());
      response.writeHead(200, { "content-type": "application/x-ndjson" });
      response.write(`${JSON.stringify(text)}\n`);
    });
    for await (const _piece of peer.client.vms.execStream("vm-1", { argv: ["x"] })) break;
    await closed.promise;
  });
});

function failureOf(code: string) {
  return { error: { code, message: "It is so" } };
}

describe("files of VMs", () => {
  test("are asked for by their whole paths, whatever is in them", async () => {
    await using peer = await connect((response) => response.end("x") as unknown as undefined);
    await peer.client.vms.readFile("vm-1", "/a b/ä?#%2f");
    expect(peer.server.seen[0]?.path).toBe("/v1/vms/vm-1/files/a%20b/%C3%A4%3F%23%252f");
  });

  test.each(["", "/", "a", "/a/../b", "/a//b", "/./a", "/a/"])("are not asked for by %j", async (path) => {
    await using peer = await connect((response) => sendJson(response, {}));
    const { vms } = peer.client;
    for (const ask of [
      async () => vms.readFile("vm-1", path),
      async () => vms.writeFile("vm-1", path, "x"),
    ]) {
      await expect(ask()).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
    }
    expect(peer.server.seen).toEqual([]);
  });

  test("are sent once, also when the gateway is busy", async () => {
    await using peer = await connect((response) => sendJson(response, {}, 503));
    await expect(peer.client.vms.writeFile("vm-1", "/a", "x", { mode: 0o4755 })).rejects.toThrow();
    expect(peer.server.seen.map(({ method, path, body }) => [method, path, body])).toEqual([
      ["PUT", "/v1/vms/vm-1/files/a?mode=755", "x"],
    ]);
  });
});
