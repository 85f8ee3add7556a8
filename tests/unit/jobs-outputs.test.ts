import { describe, expect, test } from "bun:test";
import { AgentError } from "../../guest-agent/protocol/mod.ts";
import {
  checkOutputs,
  fetchOutputs,
  type OutputFile,
  type OutputSource,
} from "../../runtime/jobs/outputs.ts";
import { rejection } from "../support/agent-peer.ts";

type Entry = Parameters<typeof checkOutputs>[0][number];

function entry(path: string, changes: Partial<Entry> = {}): Entry {
  return { path, type: "file", size: 1, mode: 0o644, mtimeMs: 0, ...changes };
}

/** A guest that says and gives what it likes. */
function guest(entries: Entry[], content: Record<string, string | Error> = {}): OutputSource {
  return {
    memBytes: 1000,
    agent: {
      list: async () => entries,
      getFile: (path) =>
        new ReadableStream<Uint8Array>({
          pull: (controller) => {
            const bytes = content[path] ?? "";
            if (bytes instanceof Error) throw bytes;
            controller.enqueue(Buffer.from(bytes));
            controller.close();
          },
        }),
    },
  };
}

/** Fetches all, as text. */
async function fetch(source: OutputSource) {
  const files: (OutputFile & { text: string })[] = [];
  const directories: string[] = [];
  const count = await fetchOutputs(source, {
    directory: async (path) => void directories.push(path),
    file: async (file, content) => {
      files.push({ ...file, text: Buffer.concat(await Array.fromAsync(content)).toString() });
    },
  });
  return { count, files, directories };
}

describe("checkOutputs()", () => {
  test.each([
    ["..", "is no plain relative path"],
    ["a/../../etc/passwd", "is no plain relative path"],
    ["/etc/passwd", "is no plain relative path"],
    ["a//b", "is no plain relative path"],
    ["a/", "is no plain relative path"],
    ["./a", "is no plain relative path"],
    ["", "is no plain relative path"],
    ["a\0b", "holds a NUL"],
    [`a/${"x".repeat(256)}`, "is too long"],
    ["ä".repeat(128), "is too long"],
    [`${"dir/".repeat(1024)}a`, "is too long"],
  ])("refuses the path %p", (path, fault) => {
    for (const type of ["file", "dir", "symlink"] as const) {
      expect(() => checkOutputs([entry(path, { type })], 1000)).toThrow(fault);
    }
  });

  test("refuses what is there twice, and what lies below a file", () => {
    expect(() => checkOutputs([entry("a"), entry("b"), entry("a")], 1000)).toThrow("twice");
    expect(() => checkOutputs([entry("a"), entry("a/b")], 1000)).toThrow("no directory");
    expect(() => checkOutputs([entry("a/b"), entry("a", { type: "symlink" })], 1000)).toThrow("no directory");
  });

  test("refuses more than the guest has memory, and takes what is odd but harmless", () => {
    expect(() => checkOutputs([entry("a", { size: 600 }), entry("b", { size: 401 })], 1000)).toThrow("1001");
    const odd = ["...", "a b", "-rf", "$(x)", "a\nb", "c:\\d", "%2e%2e", ".hidden", "ü"];
    checkOutputs([entry("dir", { type: "dir", size: 0 }), ...odd.map((path) => entry(`dir/${path}`))], 1000);
  });
});

describe("fetchOutputs()", () => {
  test("gives files with their bytes and plain modes, directories before them, and nothing else", async () => {
    const source = guest(
      [
        entry("a", { type: "dir", size: 0 }),
        entry("a/one", { size: 3, mode: 0o6755 }),
        entry("a/pipe", { type: "other", size: 0 }),
        entry("link", { type: "symlink", size: 0 }),
      ],
      { "/out/a/one": "one", "/out/link": "secret" },
    );
    const { count, files, directories } = await fetch(source);
    expect(count).toBe(1);
    expect(directories).toEqual(["a"]);
    expect(files).toEqual([{ path: "a/one", mode: 0o755, size: 3, text: "one" }]);
  });

  test("refuses a file that gives more bytes than it was said to have", async () => {
    const error = await rejection(fetch(guest([entry("a", { size: 2 })], { "/out/a": "abc" })));
    expect(error).toMatchObject({ code: "TASK_FAILED" });
    expect(error.message).toContain("grew");
  });

  test("says TASK_FAILED for a file that the guest does not give, and nothing else for a lost channel", async () => {
    const gone = new AgentError("AGENT_REFUSED", "No such file", { errno: "ENOENT" });
    const refused = await rejection(fetch(guest([entry("a")], { "/out/a": gone })));
    expect(refused).toMatchObject({ code: "TASK_FAILED" });
    expect(refused.message).toContain('"a"');
    const lost = new AgentError("AGENT_CLOSED", "gone");
    expect(await rejection(fetch(guest([entry("a")], { "/out/a": lost })))).toMatchObject({
      code: "AGENT_CLOSED",
    });
  });

  test("reads nothing before all of the list is known to be good", async () => {
    const taken: string[] = [];
    const source = guest([entry("a"), entry("../b")], { "/out/a": "x" });
    const fetching = fetchOutputs(source, { file: async ({ path }) => void taken.push(path) });
    expect((await rejection(fetching)).code).toBe("TASK_FAILED");
    expect(taken).toEqual([]);
  });
});
