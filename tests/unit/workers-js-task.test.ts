import { describe, expect, test } from "bun:test";
import { runJsTask, TaskLog } from "../../runtime/workers/js/js-task.ts";
import { rejection } from "../support/agent-peer.ts";
import { ScriptedWorkerHost } from "../support/worker-peer.ts";

/** Bytes that a value may take. */
const MOST = 1024 * 1024;

describe("runJsTask()", () => {
  test("gives what the task has returned as JSON, up to 1 MiB of UTF-8", async () => {
    const values = [null, false, "", { a: ["\0", 1.5, "\ud800"] }, "ü".repeat(MOST / 2 - 1)];
    for (const json of values.map((value) => JSON.stringify(value))) {
      expect(await returned(json)).toEqual({ value: json });
    }
  });

  test("fails the attempt where a guest that does not count sends more, or what is worse to keep", async () => {
    const codeOf = async (json: string) => {
      const { code, message } = await rejection(returned(json));
      return `${code} ${message}`;
    };
    expect(await codeOf(JSON.stringify("x".repeat(MOST - 1)))).toContain(`TASK_FAILED The task: the answer`);
    // Numbers are longer as they are written here.
    const numbers = `[${Array(50_000).fill("1e20").join()}]`;
    expect(await rejection(returned(numbers))).toMatchObject({
      code: "TASK_FAILED",
      message: "The value of task 3 takes 1100001 bytes as JSON",
      hint: "return at most 1048576 bytes, and send the rest elsewhere with fetch()",
    });
    expect(await codeOf("[".repeat(101) + "]".repeat(101))).toBe(
      "TASK_FAILED The value of task 3 is nested more than 100 deep",
    );
  });
});

/** What comes of a task whose guest sends this as its value. */
async function returned(json: string): Promise<unknown> {
  await using guest = await ScriptedWorkerHost.start();
  guest.greet();
  const io = { started: () => undefined, output: () => undefined, artifact: async () => undefined };
  const child = { worker: guest.client, explain: async (error: unknown) => error };
  const attempt = { index: 3, input: undefined, timeoutMs: undefined };
  const running = runJsTask(child, attempt, new TaskLog(io), new AbortController().signal);
  // Whoever is refused waits for nothing more.
  running.catch(() => undefined);
  const { id } = await guest.expect("TASK");
  const bytes = Buffer.from(json);
  for (let at = 0; at < bytes.length; at += 16_384) guest.data(id, bytes.subarray(at, at + 16_384));
  guest.send("END", id, { s: 1 });
  guest.send("DONE", id);
  return await running;
}
