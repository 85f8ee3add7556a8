import { describe, expect, test } from "bun:test";
import { once } from "node:events";
import { AgentError, type WaitOptions } from "../../guest-agent/protocol/mod.ts";
import { Pulse } from "../../runtime/workers/pulse.ts";

describe("Pulse", () => {
  test("asks again and again, and tells when an answer has not come in time", async () => {
    const asked: WaitOptions[] = [];
    const ping = async (options: WaitOptions = {}) => {
      asked.push(options);
      if (asked.length === 3) throw new AgentError("AGENT_TIMEOUT", "silence");
    };
    using pulse = new Pulse({ ping }, 1);
    await once(pulse.lost, "abort");
    expect(asked).toHaveLength(3);
    expect(asked[0]!.timeoutMs).toBe(1);
    expect(pulse.lost.reason).toMatchObject({ code: "AGENT_TIMEOUT" });
  });

  test("says nothing of a channel that is closed, and stops asking", async () => {
    let asked = 0;
    const closed = Promise.withResolvers<void>();
    const ping = async () => {
      asked += 1;
      closed.resolve();
      throw new AgentError("AGENT_CLOSED", "gone");
    };
    using pulse = new Pulse({ ping }, 1);
    await closed.promise;
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(asked).toBe(1);
    expect(pulse.lost.aborted).toBe(false);
  });

  test("ends the question that is open when it is disposed", async () => {
    const open = Promise.withResolvers<AbortSignal>();
    const ping = ({ signal }: WaitOptions = {}) => {
      open.resolve(signal!);
      return new Promise<void>(() => undefined);
    };
    const pulse = new Pulse({ ping }, 1);
    const signal = await open.promise;
    pulse[Symbol.dispose]();
    expect(signal.aborted).toBe(true);
    expect(pulse.lost.aborted).toBe(false);
  });
});
