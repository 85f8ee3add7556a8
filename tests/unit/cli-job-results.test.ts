import { expect, test } from "bun:test";
import { showResult } from "../../runtime/cli/job-wait.ts";
import { Output } from "../../runtime/cli/output.ts";
import type { TaskResult } from "../../runtime/client/mod.ts";

function shown(result: Partial<TaskResult>, json = false): string {
  const written: string[] = [];
  const out = { write: (text: string) => written.push(text) };
  const ended = { index: 7, state: "succeeded", attempt: 1, stdout: "", stdoutTruncated: false } as const;
  const rest = { artifacts: 0, ended: 1, endedAt: "2026-01-31T12:00:00.000Z" };
  showResult(new Output({ json, out, err: out }), { ...ended, ...rest, ...result }, "job_1");
  return written.join("");
}

test("a result shows the value that its task has returned, null too, and where there is none what was printed", () => {
  expect(shown({ value: { twice: [2, "\n"] } })).toBe('[7] {"twice":[2,"\\n"]}\n');
  expect(shown({ value: null })).toBe("[7] null\n");
  expect(shown({ stdout: "a\nb\n" })).toBe("[7] a\n[7] b\n");
  expect(JSON.parse(shown({ value: null }, true))).toMatchObject({ event: "result", index: 7, value: null });
  expect(JSON.parse(shown({}, true))).not.toHaveProperty("value");
});
