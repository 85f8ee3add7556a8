import { describe, expect, test } from "bun:test";
import { workerLimits } from "../../guest-agent/protocol/worker/constants.ts";
import { parseGuestMessage } from "../../guest-agent/protocol/worker/guest-messages.ts";
import { Waits } from "../../guest-agent/worker-host/context.ts";
import { Records } from "../../guest-agent/worker-host/records.ts";

function sink() {
  const frames: Uint8Array[] = [];
  return {
    send: (frame: Uint8Array) => {
      frames.push(frame);
    },
    get bytes() {
      return frames.reduce((sum, frame) => sum + frame.length - 4, 0);
    },
    messages: () =>
      frames.map((frame) => {
        const message = parseGuestMessage(frame.subarray(4));
        if (message.type === "LOG") return { text: message.text, dropped: message.dropped };
        return { type: message.type };
      }),
  };
}

const line = (text: string) => ({ stream: "stdout", level: "info", text, requestId: undefined }) as const;
const fault = {
  kind: "uncaughtException",
  message: "m",
  stack: undefined,
  exitCode: undefined,
  requestId: undefined,
} as const;

describe("Records", () => {
  test("keeps what is written while there is no host, up to a bound, and sends it first", () => {
    const records = new Records();
    for (let i = 0; i < 100; i++) records.log(line(`${i} ${"x".repeat(2000)}`));
    const host = sink();
    records.attach(host.send);
    const kept = host.messages().length;
    expect(kept).toBeGreaterThan(20);
    expect(host.bytes).toBeLessThanOrEqual(65_536);
    records.log(line("after"));
    expect(host.messages().at(-1)).toEqual({ text: "after", dropped: 100 - kept });
  });

  test("sends no more than the credit, keeps a part of it for faults, and counts what it dropped", () => {
    const records = new Records();
    const host = sink();
    records.attach(host.send);
    for (let i = 0; i < 200; i++) records.log(line("x".repeat(4000)));
    expect(host.bytes).toBeLessThanOrEqual(workerLimits.LOG_WINDOW - workerLimits.FAULT_RESERVE);
    const logs = host.messages().length;
    records.fault(fault);
    expect(host.messages().at(-1)).toEqual({ type: "FAULT" });
    expect(records.addCredit(host.bytes)).toBe(true);
    expect(host.messages().at(-1)).toMatchObject({ dropped: 200 - logs });
    expect(records.addCredit(workerLimits.LOG_WINDOW)).toBe(false);
  });

  test("says nothing while it is quiet, and all of it afterwards", () => {
    const records = new Records();
    const host = sink();
    records.attach(host.send);
    records.detach();
    records.log(line("quiet"));
    expect(host.messages()).toEqual([]);
    records.resume(host.send);
    expect(host.messages()).toEqual([{ text: "quiet", dropped: 0 }]);
  });
});

describe("Waits", () => {
  test("settles when all have, those included that come meanwhile", async () => {
    const failures: unknown[] = [];
    const waits = new Waits((error) => failures.push(error));
    waits.add(Bun.sleep(5).then(() => waits.add(Promise.reject("late"))));
    waits.add("no promise");
    expect(await waits.settle(1000)).toEqual({ waited: 3, failed: 1, unsettled: 0 });
    expect(failures).toEqual(["late"]);
  });

  test("waits no longer than it may", async () => {
    const waits = new Waits(() => undefined);
    waits.add(new Promise(() => undefined));
    waits.add(Promise.resolve());
    expect(await waits.settle(20)).toEqual({ waited: 2, failed: 0, unsettled: 1 });
  });
});
