import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { follow } from "../../runtime/client/follow.ts";

const unreachable = () => new FlurryError("GATEWAY_UNREACHABLE", "Nobody listens there");

/** A stream whose connections are these: items, or undefined for one that fails. The last one is repeated. */
function connections(
  each: readonly (readonly number[] | undefined)[],
  isComplete: (passed: number) => boolean,
) {
  const waits: number[] = [];
  let opened = 0;
  let passed = 0;
  const items = follow<number>({
    async *open() {
      const items = each[Math.min(opened, each.length - 1)];
      opened += 1;
      if (!items) throw unreachable();
      yield* items;
    },
    passed: (item) => {
      passed = item;
    },
    complete: () => isComplete(passed),
    pause: async (ms) => {
      waits.push(ms);
    },
  });
  return { items, waits, opened: () => opened };
}

describe("follow()", () => {
  test("gives a gateway up soon that has never been there", async () => {
    const { items, opened } = connections([undefined], () => false);
    await expect(Array.fromAsync(items)).rejects.toMatchObject({ code: "GATEWAY_UNREACHABLE" });
    expect(opened()).toBe(9);
  });

  test("waits for minutes for one that has been there, and then goes on", async () => {
    const away = Array.from({ length: 55 }, () => undefined);
    const { items, waits } = connections([[1, 2], ...away, [3]], (passed) => passed === 3);
    expect(await Array.fromAsync(items)).toEqual([1, 2, 3]);
    const waited = waits.reduce((sum, ms) => sum + ms, 0);
    expect(waited).toBeGreaterThan(60_000);
    expect(Math.max(...waits)).toBeLessThanOrEqual(5000);
  });

  test("ends its patience with one that does not come back", async () => {
    const { items, opened } = connections([[1], undefined], () => false);
    await expect(Array.fromAsync(items)).rejects.toMatchObject({ code: "GATEWAY_UNREACHABLE" });
    expect(opened()).toBe(62);
  });
});
