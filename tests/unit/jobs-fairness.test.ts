import { describe, expect, test } from "bun:test";
import { Fairness } from "../../runtime/jobs/fairness.ts";
import type { Lane } from "../../runtime/jobs/ports.ts";

/** Picks so often, and says whom. */
function picks(fairness: Fairness, times: number, lanes: Lane[]): Lane[] {
  return Array.from({ length: times }, () => fairness.pick(lanes)!);
}

function lane(owner: string, priority = 5): Lane {
  return { owner, priority };
}

function countOf(list: readonly Lane[], owner: string): number {
  return list.filter((one) => one.owner === owner).length;
}

/** Longest time between two picks of a lane, its first one included. */
function longestGap(list: readonly Lane[], matches: (one: Lane) => boolean): number {
  const at = [-1, ...list.flatMap((one, index) => (matches(one) ? [index] : [])), list.length];
  return Math.max(...at.slice(1).map((index, n) => index - at[n]!));
}

describe("Fairness", () => {
  test("picks nobody when nobody waits", () => {
    expect(new Fairness().pick([])).toBeUndefined();
  });

  test("gives equal shares to owners, whatever they have waiting", () => {
    const fairness = new Fairness();
    // One has tasks of ten priorities, one of two, one of a single one.
    const many = Array.from({ length: 10 }, (_, priority) => lane("many", priority));
    const lanes = [...many, lane("few", 9), lane("few", 8), lane("one", 0)];
    const picked = picks(fairness, 3000, lanes);
    for (const owner of ["many", "few", "one"]) {
      expect(countOf(picked, owner)).toBe(1000);
      expect(longestGap(picked, (one) => one.owner === owner)).toBe(3);
    }
  });

  test("lets priority 9 go far ahead, and priority 0 move within its bound", () => {
    const lanes = Array.from({ length: 10 }, (_, priority) => lane("me", priority));
    const picked = picks(new Fairness(), 20 * 1023, lanes);
    for (let priority = 0; priority <= 9; priority++) {
      const matches = (one: Lane) => one.priority === priority;
      expect(picked.filter(matches).length).toBe(20 * 2 ** priority);
      expect(longestGap(picked, matches)).toBeLessThanOrEqual(1023 / 2 ** priority + 10);
    }
  });

  test("begins with the higher priority, and lets it go ahead 512 times of the lowest", () => {
    const picked = picks(new Fairness(), 1026, [lane("me", 0), lane("me", 9)]);
    expect(picked.findIndex(({ priority }) => priority === 0)).toBe(511);
    expect(picked.filter(({ priority }) => priority === 0)).toHaveLength(2);
  });

  test("gives an owner who was idle nothing for the past", () => {
    const fairness = new Fairness();
    picks(fairness, 2, [lane("a"), lane("b")]);
    picks(fairness, 1000, [lane("a")]);
    const picked = picks(fairness, 100, [lane("a"), lane("b")]);
    expect(countOf(picked.slice(0, 10), "b")).toBe(5);
    expect(countOf(picked, "b")).toBe(50);
  });

  test("gives a lane that was idle nothing for the past", () => {
    const fairness = new Fairness();
    picks(fairness, 10, [lane("me", 4), lane("me", 5)]);
    picks(fairness, 1000, [lane("me", 5)]);
    const picked = picks(fairness, 300, [lane("me", 4), lane("me", 5)]);
    expect(picked.filter(({ priority }) => priority === 4)).toHaveLength(100);
    expect(picked.slice(0, 30).filter(({ priority }) => priority === 4)).toHaveLength(10);
  });

  test("gives no more than a share to who submits one task at a time, again and again", () => {
    const fairness = new Fairness();
    let served = 0;
    let asks = true;
    for (let n = 0; n < 1000; n++) {
      const picked: Lane = fairness.pick(asks ? [lane("steady"), lane("again")] : [lane("steady")])!;
      if (picked.owner === "again") served += 1;
      // Served, it is away for one look at the lanes only.
      asks = picked.owner !== "again";
    }
    expect(served).toBeGreaterThan(300);
    expect(served).toBeLessThanOrEqual(500);
  });

  test("keeps the order of an owner's lanes while the owner is blocked again and again", () => {
    const fairness = new Fairness();
    const mine = [lane("me", 0), lane("me", 9)];
    const picked: Lane[] = [];
    for (let n = 0; n < 2000; n++) {
      const one = fairness.pick([...mine, lane("other")])!;
      if (one.owner === "me") picked.push(one);
      for (let wait = 0; wait < 3; wait++) fairness.pick([lane("other")], new Set(["me"]));
    }
    expect(picked.length).toBeGreaterThan(1500);
    expect(longestGap(picked, ({ priority }) => priority === 0)).toBeLessThanOrEqual(514);
  });

  test("remembers only those who wait, however many have come and gone", () => {
    const fairness = new Fairness();
    for (let n = 0; n < 5000; n++) fairness.pick([lane(`key-${n}`, n % 10), lane("stays")]);
    picks(fairness, 3, [lane("stays")]);
    expect(fairness.size).toBe(2);
  });
});
