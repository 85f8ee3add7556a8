import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { downloadArtifacts } from "../../runtime/cli/artifact-files.ts";
import { FlurryClient } from "../../runtime/client/mod.ts";
import { type Answer, SAMPLE_ID, ScriptedServer, sendJson, sendProblem } from "../support/client-server.ts";

const content = "0123456789".repeat(10);
let above: string;
let dir: string;

beforeEach(() => {
  above = mkdtempSync(join(tmpdir(), "flurry-artifacts-"));
  dir = join(above, "a/b");
});

afterEach(() => {
  rmSync(above, { recursive: true, force: true });
});

function artifact(path: string, more: object = {}) {
  const sha256 = createHash("sha256").update(content).digest("hex");
  return { task: 0, path, size: content.length, mode: 0o644, sha256, ...more };
}

/** Downloads from a gateway that lists these, and answers each with `answer`. */
async function download(items: object[], answer: Answer) {
  await using server = await ScriptedServer.start((response, request, n, raw) => {
    if (request.path.endsWith("/artifacts")) return sendJson(response, { items });
    return answer(response, request, n, raw);
  });
  const files: { path: string; existed: boolean }[] = [];
  await downloadArtifacts({
    client: new FlurryClient({ url: server.url, retries: 0 }),
    job: SAMPLE_ID,
    dir,
    signal: new AbortController().signal,
    onFile: ({ path, existed }) => files.push({ path, existed }),
  });
  return { files, seen: server.seen };
}

const whole: Answer = (response) => response.end(content) as unknown as undefined;

describe("downloadArtifacts()", () => {
  test("writes each file with its mode, and leaves it when it is there already", async () => {
    const items = [artifact("x"), artifact("d/y", { mode: 0o4755 })];
    const first = await download(items, whole);
    expect(first.files.map(({ existed }) => existed)).toEqual([false, false]);
    expect(readFileSync(join(dir, "0/d/y"), "utf8")).toBe(content);
    expect(statSync(join(dir, "0/d/y")).mode & 0o7777).toBe(0o755);
    const second = await download(items, whole);
    expect(second.files.map(({ existed }) => existed)).toEqual([true, true]);
    expect(second.seen.length).toBe(1);
  });

  test.each(["../../evil", "/evil", "a/../../../evil", "..", "", "a//b", "nul\0"])(
    "refuses the path %j, also of a hostile gateway",
    async (path) => {
      await expect(download([artifact(path)], whole)).rejects.toMatchObject({ code: "GATEWAY_FAILED" });
      expect(readdirSync(above, { recursive: true }).sort()).toEqual(["a", "a/b"]);
    },
  );

  test("goes on where a connection was lost", async () => {
    const { seen } = await download([artifact("x")], (response, { headers }) => {
      if (headers.range === undefined) {
        response.writeHead(200, { "content-length": String(content.length) });
        response.write(content.slice(0, 30), () => setTimeout(() => response.destroy(), 50));
        return;
      }
      const start = Number(/^bytes=(\d+)-$/.exec(headers.range)?.[1]);
      response.writeHead(206, { "content-range": `bytes ${start}-99/100` });
      response.end(content.slice(start));
    });
    expect(readFileSync(join(dir, "0/x"), "utf8")).toBe(content);
    expect(seen.at(-1)?.headers.range).toBe("bytes=30-");
  });

  test("leaves nothing of a file whose content is not what it should be, or that fails", async () => {
    const answers: [string, Answer][] = [
      ["GATEWAY_FAILED", (response) => response.end("wrong") as unknown as undefined],
      ["GATEWAY_FAILED", (response) => response.end(content.replace("5", "6")) as unknown as undefined],
      ["GATEWAY_FAILED", (response) => response.end(content.repeat(1000)) as unknown as undefined],
      ["ARTIFACT_NOT_FOUND", (response) => sendProblem(response, 404, "ARTIFACT_NOT_FOUND")],
      ["GATEWAY_UNREACHABLE", (response) => response.destroy() as unknown as undefined],
    ];
    for (const [code, answer] of answers) {
      await expect(download([artifact("x")], answer)).rejects.toMatchObject({ code });
      expect(readdirSync(join(dir, "0"))).toEqual([]);
      expect(readdirSync(dir)).toEqual(["0"]);
    }
  });

  test("overwrites no file with another content", async () => {
    await download([artifact("x")], whole);
    writeFileSync(join(dir, "0/x"), "mine");
    await expect(download([artifact("x"), artifact("y")], whole)).rejects.toMatchObject({
      code: "BAD_ARGUMENT",
    });
    expect(readFileSync(join(dir, "0/x"), "utf8")).toBe("mine");
  });

  test("says when the directory cannot be made", async () => {
    writeFileSync(join(above, "a"), "a file");
    await expect(download([artifact("x")], whole)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
    expect(existsSync(dir)).toBe(false);
  });
});
