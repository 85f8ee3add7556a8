import { describe, expect, test } from "bun:test";
import { type SetAsideChange, SetAsides } from "../../runtime/jobs/set-aside.ts";
import { ManualClock } from "../support/jobs-clock.ts";

function setup() {
  const clock = new ManualClock();
  const changes: SetAsideChange[] = [];
  const asides = new SetAsides({
    clock,
    host: { id: "here", label: "this machine" },
    onChange: (change) => changes.push(change),
  });
  const fail = (family: string, times: number, code = "FORK_FAILED") => {
    for (let n = 0; n < times; n++) asides.begin(family, `image ${family}`).failed(code, "No luck");
  };
  return { clock, changes, asides, fail };
}

describe("SetAsides", () => {
  test("sets a family aside at its fifth failure in a row, with the reason", () => {
    const { asides, fail, changes, clock } = setup();
    fail("a", 4);
    expect(asides.blockedFamilies()).toEqual([]);
    asides.begin("a", "image a").worked();
    fail("a", 4);
    expect(asides.blockedFamilies()).toEqual([]);
    fail("a", 1);
    expect(asides.blockedFamilies()).toEqual(["a"]);
    const entry = {
      kind: "worker",
      id: "a",
      label: "image a",
      reason: "FORK_FAILED: No luck",
      failures: 5,
      since: new Date(clock.now()).toISOString(),
      nextTryAt: new Date(clock.now() + 1000).toISOString(),
    } as const;
    expect(changes).toEqual([{ change: "set aside", entry }]);
    expect(asides.list()).toEqual([entry]);
    expect(asides.hostBlocked).toBe(false);
  });

  test("lets one use try again after a wait that doubles up to five minutes", () => {
    const { asides, fail, clock } = setup();
    fail("a", 5);
    const waits = [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300];
    for (const seconds of waits) {
      expect(asides.nextMs()).toBe(seconds * 1000);
      clock.advance(seconds * 1000 - 1);
      expect(asides.blockedFamilies()).toEqual(["a"]);
      clock.advance(1);
      expect(asides.blockedFamilies()).toEqual([]);
      const probe = asides.begin("a", "image a");
      expect(asides.blockedFamilies()).toEqual(["a"]);
      expect(asides.nextMs()).toBeUndefined();
      probe.failed("FORK_FAILED", "Still no luck");
    }
    expect(asides.list()).toMatchObject([{ failures: 16, reason: "FORK_FAILED: Still no luck" }]);
  });

  test("brings a family back whose probe works", () => {
    const { asides, fail, clock, changes } = setup();
    fail("a", 5);
    clock.advance(1000);
    asides.begin("a", "image a").worked();
    expect(asides.list()).toEqual([]);
    expect(asides.nextMs()).toBeUndefined();
    expect(changes.at(-1)).toEqual({ change: "restored", kind: "worker", id: "a" });
    fail("a", 4);
    expect(asides.list()).toEqual([]);
  });

  test("lets another use probe when the first one came to nothing", () => {
    const { asides, fail, clock } = setup();
    fail("a", 5);
    clock.advance(1000);
    asides.begin("a", "image a").unknown();
    expect(asides.blockedFamilies()).toEqual([]);
    expect(asides.list()).toHaveLength(1);
  });

  test("does not count what had begun before it was set aside", () => {
    const { asides, clock } = setup();
    const trials = Array.from({ length: 20 }, () => asides.begin("a", "image a"));
    for (const trial of trials) trial.failed("CHILD_DIED", "Gone");
    expect(asides.list()).toMatchObject([{ failures: 5 }]);
    expect(asides.nextMs()).toBe(1000);
    clock.advance(1000);
    expect(asides.blockedFamilies()).toEqual([]);
  });

  test("counts how one use went once", () => {
    const { asides } = setup();
    const trial = asides.begin("a", "image a");
    for (let n = 0; n < 10; n++) trial.failed("CHILD_DIED", "Gone");
    expect(asides.list()).toEqual([]);
  });

  test("sets the host aside when several families fail in a row, or what all need", () => {
    const several = setup();
    several.fail("a", 3);
    several.fail("b", 2);
    expect(several.asides.hostBlocked).toBe(false);
    several.fail("a", 1);
    several.fail("c", 2);
    expect(several.asides.hostBlocked).toBe(true);
    expect(several.asides.list()).toMatchObject([{ kind: "host", id: "here", label: "this machine" }]);

    const full = setup();
    full.fail("a", 5, "NO_SPACE");
    expect(full.asides.hostBlocked).toBe(true);
    expect(full.asides.blockedFamilies()).toEqual([]);
  });

  test("sets the host aside at once when it cannot go on at all, and brings it back", () => {
    const { asides, clock, changes } = setup();
    asides.hostFailed("NO_SPACE", "Disk is full");
    expect(asides.hostBlocked).toBe(true);
    expect(asides.list()).toMatchObject([{ kind: "host", reason: "NO_SPACE: Disk is full" }]);
    clock.advance(1000);
    expect(asides.hostBlocked).toBe(false);
    expect(asides.hostIsDue).toBe(true);
    asides.hostWorked();
    expect(asides.list()).toEqual([]);
    expect(changes.map(({ change }) => change)).toEqual(["set aside", "restored"]);
  });

  test("tries a host again with one use, whatever its family", () => {
    const { asides, fail, clock } = setup();
    fail("a", 5, "NO_SPACE");
    clock.advance(1000);
    const probe = asides.begin("b", "image b");
    expect(asides.hostBlocked).toBe(true);
    probe.failed("FORK_FAILED", "No luck");
    expect(asides.nextMs()).toBe(2000);
    clock.advance(2000);
    asides.begin("b", "image b").worked();
    expect(asides.hostBlocked).toBe(false);
    expect(asides.list()).toEqual([]);
  });

  test("is not moved by a wall clock that jumps", () => {
    const { asides, fail, clock } = setup();
    fail("a", 5);
    clock.jump(-366 * 86_400_000);
    expect(asides.nextMs()).toBe(1000);
    clock.jump(2 * 366 * 86_400_000);
    expect(asides.blockedFamilies()).toEqual(["a"]);
    clock.advance(1000);
    expect(asides.blockedFamilies()).toEqual([]);
  });

  test("forgets what nobody asks for any more", () => {
    const { asides, fail, clock, changes } = setup();
    for (let n = 0; n < 100; n++) fail(`f${n}`, 1);
    asides.begin("works", "image").worked();
    fail("a", 5);
    clock.advance(3_602_000);
    expect(asides.nextMs()).toBeUndefined();
    expect(asides.list()).toEqual([]);
    expect(changes.at(-1)).toEqual({ change: "restored", kind: "worker", id: "a" });
  });
});
