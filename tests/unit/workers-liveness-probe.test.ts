import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { AgentError, type WaitOptions } from "../../guest-agent/protocol/mod.ts";
import { LivenessProbe } from "../../runtime/workers/liveness-probe.ts";

describe("LivenessProbe", () => {
  test("asks again and again, and tells when an answer has not come in time", async () => {
    const asked: WaitOptions[] = [];
    const ping = async (options: WaitOptions = {}) => {
      asked.push(options);
      if (asked.length === 3) throw new AgentError("AGENT_TIMEOUT", "silence");
    };
    using probe = new LivenessProbe({ ping }, 1);
    await once(probe.lost, "abort");
    expect(asked).toHaveLength(3);
    expect(asked[0]!.timeoutMs).toBe(1);
    expect(probe.lost.reason).toMatchObject({ code: "AGENT_TIMEOUT" });
  });

  test("says nothing of a channel that is closed, and stops asking", async () => {
    let asked = 0;
    const closed = Promise.withResolvers<void>();
    const ping = async () => {
      asked += 1;
      closed.resolve();
      throw new AgentError("AGENT_CLOSED", "gone");
    };
    using probe = new LivenessProbe({ ping }, 1);
    await closed.promise;
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(asked).toBe(1);
    expect(probe.lost.aborted).toBe(false);
  });

  test("ends the question that is open when it is disposed", async () => {
    const open = Promise.withResolvers<AbortSignal>();
    const ping = ({ signal }: WaitOptions = {}) => {
      open.resolve(signal!);
      return new Promise<void>(() => undefined);
    };
    const probe = new LivenessProbe({ ping }, 1);
    const signal = await open.promise;
    probe[Symbol.dispose]();
    expect(signal.aborted).toBe(true);
    expect(probe.lost.aborted).toBe(false);
  });
});
