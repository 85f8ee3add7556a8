import { expect, test } from "bun:test";
import { LruMap } from "../../runtime/workers/lru-map.ts";

test("LruMap forgets what was longest not asked for, and never what is in use", () => {
  const remembered = new LruMap<number>(3);
  remembered.set("hot", 0);
  for (let n = 1; n <= 10; n++) {
    remembered.set(`family-${n}`, n);
    expect(remembered.get("hot")).toBe(0);
  }
  expect(remembered.get("family-10")).toBe(10);
  expect(remembered.get("family-9")).toBe(9);
  expect(remembered.get("family-8")).toBeUndefined();
  remembered.set("family-9", 99);
  expect(remembered.get("family-9")).toBe(99);
  remembered.delete("hot");
  expect(remembered.get("hot")).toBeUndefined();
});
