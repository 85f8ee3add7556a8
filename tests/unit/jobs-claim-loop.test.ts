import { expect, test } from "bun:test";
import { ClaimLoop, type ClaimLoopOptions } from "../../runtime/jobs/claim-loop.ts";
import type { Claim, Queue } from "../../runtime/jobs/ports.ts";
import { Preparing } from "../../runtime/jobs/preparing.ts";
import { SetAsides } from "../../runtime/jobs/set-aside.ts";
import { Slots } from "../../runtime/jobs/slots.ts";
import { Wake } from "../../runtime/jobs/wake.ts";
import { ManualClock } from "../support/jobs-clock.ts";

const lane = { owner: "", priority: 0 };

/** A queue with one task, of the family "f". Asking for its lanes takes a while. */
function queueOf(lanesTake: () => void): Queue {
  const queue: Partial<Queue> = {
    onReady: () => ({ [Symbol.dispose]: () => undefined }),
    nextMs: async () => undefined,
    lanes: async ({ families }) => {
      lanesTake();
      return families.has("f") ? [] : [lane];
    },
    claim: async () => ({ family: "f" }) as Claim,
  };
  return queue as Queue;
}

test("a family that comes due while tasks are looked for is tried at once", async () => {
  const clock = new ManualClock();
  const host = { id: "host", label: "host" };
  const asides = new SetAsides({ clock, host, onChange: () => undefined });
  for (let count = 0; count < 5; count += 1) asides.begin("f", "f").failed("FORK_FAILED", "killed");
  expect(asides.blockedFamilies()).toEqual(["f"]);
  // A timer may fire a moment early, as those of Bun do by fractions of a millisecond.
  clock.advance(999.5);
  const begun = Promise.withResolvers<string>();
  const slots = new Slots(
    () => 1,
    () => undefined,
  );
  let rounds = 0;
  const options = {
    queue: queueOf(() => {
      rounds += 1;
      if (rounds === 1) clock.advance(1);
    }),
    after: (ms: number, callback: () => void) => {
      expect(ms).toBeLessThan(1);
      queueMicrotask(callback);
      return { [Symbol.dispose]: () => undefined };
    },
    wake: new Wake(),
    ...{ hostId: "host", leaseMs: 1000, slots, asides, preparing: new Preparing() },
    owners: { blocked: () => new Set<string>() },
    recorder: { troubled: false },
    begin: async (claim: Claim) => {
      begun.resolve(claim.family);
      return false;
    },
  };
  await using loop = new ClaimLoop(options as unknown as ClaimLoopOptions);
  loop.start();
  expect(await Promise.race([begun.promise, later()])).toBe("f");
});

/** When all that follows from the first round has happened. */
function later(): Promise<string> {
  return new Promise((resolve) => setTimeout(resolve, 100, "nothing was begun"));
}
