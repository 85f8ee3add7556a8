import { afterAll, beforeAll, expect, test } from "bun:test";
import fc from "fast-check";
import { AgentError, limits } from "../../guest-agent/protocol/mod.ts";
import { ScriptedHook } from "../support/agent-hook.ts";
import { freshIdentity } from "../support/agent-identity.ts";
import { AgentUnderTest } from "../support/agent-process.ts";

let agent: AgentUnderTest;

beforeAll(async () => {
  agent = await AgentUnderTest.start({ identity: true });
}, 120_000);

afterAll(() => agent[Symbol.asyncDispose]());

const { pid } = process;
const words = fc.constantFrom(
  "ready",
  "done",
  "done x",
  "failed",
  "failed y",
  "busy",
  "busy z",
  "go",
  "resume",
  "ok",
);
const lines = fc.oneof(
  { weight: 4, arbitrary: words },
  { weight: 3, arbitrary: fc.constantFrom(`hook fuzz ${pid}`, `hook other ${pid}`) },
  fc.constantFrom("hook", `hook fuzz ${pid} 0x9`, "hook fuzz 99999999999999999999", `hook  ${pid}`),
  fc.string({ maxLength: 40 }),
  fc.constantFrom("e".repeat(510), "e".repeat(511), "e".repeat(512), "\0", "ready\0x"),
);
/** What one program does: says lines, cut anywhere, or is gone. */
const acts = fc.oneof(
  { weight: 6, arbitrary: fc.record({ who: fc.nat(3), say: lines, cut: fc.nat(20) }) },
  fc.record({ who: fc.nat(3), gone: fc.constant(true) }),
  fc.record({ who: fc.nat(3), raw: fc.uint8Array({ maxLength: 700 }) }),
);
const hosts = fc.constantFrom("quiesce", "identify", "release", "ping");

test("no program stalls the agent, ends it or comes to look like one that did its part", async () => {
  const steps = fc.array(fc.oneof({ weight: 4, arbitrary: acts }, { weight: 3, arbitrary: hosts }), {
    maxLength: 30,
  });
  await fc.assert(
    fc.asyncProperty(steps, async (todo) => {
      const { client } = await agent.client();
      await using _ = client;
      using stack = new DisposableStack();
      const hooks: (ScriptedHook | undefined)[] = [];
      const said: Promise<unknown>[] = [];
      const ask = (answer: Promise<unknown>) => {
        answer.catch(() => undefined); // looked at in the end
        said.push(answer);
      };
      for (const step of todo) {
        if (step === "quiesce") ask(client.quiesce());
        else if (step === "identify")
          ask(client.identify(freshIdentity({ hookTimeoutMs: 1 })).then(({ hooks }) => checkHooks(hooks)));
        else if (step === "release") client.release();
        else if (step === "ping") await client.ping({ timeoutMs: 30_000 });
        else {
          hooks[step.who] ??= stack.use(await ScriptedHook.connect(agent));
          const { socket } = hooks[step.who]!;
          if ("gone" in step) {
            socket.destroy();
            hooks[step.who] = undefined;
          } else if ("raw" in step) socket.write(step.raw);
          else {
            const line = Buffer.from(`${step.say}\n`);
            socket.write(line.subarray(0, step.cut));
            socket.write(line.subarray(step.cut));
          }
        }
      }
      // Whoever was asked and says nothing more goes with its connection: nothing waits for it.
      stack.dispose();
      for (const outcome of await Promise.allSettled(said))
        if (outcome.status === "rejected") expect(outcome.reason).toBeInstanceOf(AgentError);
      client.release();
      await client.ping({ timeoutMs: 30_000 });
      expect((await client.run(["echo", "awake"])).stdout).toBe("awake\n");
    }),
    { seed: 3, numRuns: 1000 },
  );
}, 300_000);

function checkHooks(hooks: readonly { name: string; pid: number; ok: boolean; text: string }[]): void {
  expect(hooks.length).toBeLessThanOrEqual(limits.HOOKS_MAX);
  for (const hook of hooks)
    expect({ ...hook, ok: true, text: "" }).toEqual({ name: hook.name, pid, ok: true, text: "" });
  for (const { name } of hooks) expect(["fuzz", "other"]).toContain(name);
}
