import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import * as vm from "../../guest-agent/bindings/src/vm.ts";

type Declared = typeof import("flurry:vm");
type Real = Omit<typeof vm, "isForking" | "isForked">;
/** Compiles only if `has` has all that is wanted, with types that fit. */
function fits<Wanted>(has: Wanted): Wanted {
  return has;
}

test("flurry-vm.d.ts declares what flurry:vm has, no more and no less", () => {
  fits<Real>(fits<Declared>(vm));
  const text = readFileSync(join(import.meta.dirname, "../../guest-agent/bindings/flurry-vm.d.ts"), "utf8");
  const declared = [...text.matchAll(/export (?:function|class) (\w+)/g)].map(([, name]) => name!);
  const { isForking: _isForking, isForked: _isForked, ...offered } = vm;
  expect(declared.sort()).toEqual(Object.keys(offered).sort());
  // In a module of its own nothing of this repository is there: a relative import makes all of it `any`.
  expect(text).not.toMatch(/from "/);
});
