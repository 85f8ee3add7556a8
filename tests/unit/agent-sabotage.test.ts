import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { buildAgent } from "../../guest-agent/init/build.ts";

test("the product's agent has no trace of the sabotage that tests have", async () => {
  const [release, sabotage] = await Promise.all([
    buildAgent({ variant: "release" }),
    buildAgent({ variant: "sabotage" }),
  ]);
  const has = (path: string, text: string) => readFileSync(path).includes(text);
  for (const text of ["sabotage", "stall"]) {
    expect(has(sabotage.path, text)).toBe(true);
    expect(has(release.path, text)).toBe(false);
  }
  expect(has(release.path, "flurry-init")).toBe(true);
}, 60_000);
