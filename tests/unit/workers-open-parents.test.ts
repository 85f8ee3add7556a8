import { describe, expect, test } from "bun:test";
import { type Forkable, OpenParents, type OpenParentsOptions } from "../../runtime/workers/open-parents.ts";
import { shellShares } from "../../runtime/workers/shell-shares.ts";

class FakeParent implements Forkable {
  intact = true;
  closed = false;
  kept = 0;
  readonly shells = {
    resize: (count: number) => {
      this.kept = count;
    },
  };

  async [Symbol.asyncDispose](): Promise<void> {
    this.closed = true;
  }
}

/** Open parents of these families, each used once, in this order. */
function open(families: string[], options: OpenParentsOptions = { budget: 3, shells: 2 }) {
  const parents = new OpenParents<FakeParent>(options);
  const fakes: Record<string, FakeParent> = {};
  const add = (family: string) => {
    fakes[family] = new FakeParent();
    parents.add(family, fakes[family], `image of ${family}`);
  };
  families.forEach(add);
  const closed = () => Object.keys(fakes).filter((family) => fakes[family]!.closed);
  return { parents, fakes, add, closed };
}

describe("OpenParents", () => {
  test("closes the parent that was longest not used when there are too many", () => {
    const { parents, add, closed } = open(["a", "b", "c"]);
    parents.hold("a")![Symbol.dispose]();
    add("d");
    expect(closed()).toEqual(["b"]);
    expect(parents.imageOf("b")).toBeUndefined();
    expect(parents.hold("b")).toBeUndefined();
    expect(parents.imageOf("a")).toBe("image of a");
  });

  test("tells when a family has a parent, and when it has none any more", () => {
    const changes: string[] = [];
    const onChange = (family: string) => changes.push(`${family} ${parents.imageOf(family) ?? "none"}`);
    const { parents, add, fakes } = open([], { budget: 2, shells: 2, onChange });
    for (const family of ["a", "b", "c"]) add(family);
    expect(changes).toEqual(["a image of a", "b image of b", "a none", "c image of c"]);
    fakes.b!.intact = false;
    expect(parents.hold("b")).toBeUndefined();
    expect(changes.slice(4)).toEqual(["b none"]);
  });

  test("closes none that is in use, and makes up for it when it is not any more", () => {
    const { parents, add, closed } = open(["a", "b", "c"]);
    const [a, b, c] = ["a", "b", "c"].map((family) => parents.hold(family)!);
    const second = parents.hold("a")!;
    add("d");
    expect(closed()).toEqual([]);
    using _d = parents.hold("d");
    a![Symbol.dispose]();
    a![Symbol.dispose]();
    expect(closed()).toEqual([]);
    second[Symbol.dispose]();
    expect(closed()).toEqual(["a"]);
    b![Symbol.dispose]();
    c![Symbol.dispose]();
    expect(closed()).toEqual(["a"]);
  });

  test("closes what is not intact any more as soon as somebody asks for it", () => {
    const { parents, fakes, closed } = open(["a", "b"]);
    const hold = parents.hold("a")!;
    fakes.a!.intact = false;
    expect(parents.imageOf("a")).toBeUndefined();
    expect(closed()).toEqual(["a"]);
    hold[Symbol.dispose]();
    fakes.b!.intact = false;
    expect(parents.hold("b")).toBeUndefined();
    expect(closed()).toEqual(["a", "b"]);
  });

  test("closes only the very parent that is meant", () => {
    const { parents, fakes, add, closed } = open(["a"]);
    const old = fakes.a!;
    add("a");
    expect(old.closed).toBe(true);
    parents.drop("a", old);
    expect(closed()).toEqual([]);
    parents.drop("a");
    expect(closed()).toEqual(["a"]);
  });

  test("keeps shells for families in use, and never more than it may", async () => {
    const { parents, fakes, add } = open(["a"]);
    expect(fakes.a!.kept).toBe(2);
    add("b");
    expect([fakes.a!.kept, fakes.b!.kept]).toEqual([1, 1]);
    for (let use = 0; use < 8; use++) parents.hold("b")![Symbol.dispose]();
    expect([fakes.a!.kept, fakes.b!.kept]).toEqual([0, 2]);
    parents.shells = 8;
    expect(fakes.b!.kept).toBe(8);
    parents.drop("b");
    await parents[Symbol.asyncDispose]();
    expect(Object.values(fakes).every(({ closed }) => closed)).toBe(true);
  });
});

describe("shellShares()", () => {
  test("divides by use, and leaves out those with a small share", () => {
    expect([...shellShares(["a"], 2)]).toEqual([["a", 2]]);
    expect(Object.fromEntries(shellShares(["a", "b", "a", "b"], 2))).toEqual({ a: 1, b: 1 });
    expect(Object.fromEntries(shellShares(["b", "a", "a", "a", "a", "a", "a"], 2))).toEqual({ a: 2, b: 0 });
    const many = Array.from({ length: 20 }, (_, index) => `f${index % 10}`);
    expect([...shellShares(many, 2).values()].every((share) => share === 0)).toBe(true);
    expect([...shellShares([], 2)]).toEqual([]);
  });

  test("never gives more than there are", () => {
    for (let total = 0; total < 9; total++) {
      for (let families = 1; families < 12; families++) {
        const recent = Array.from({ length: 4 * total }, (_, index) => `f${(index * index) % families}`);
        const sum = [...shellShares(recent, total).values()].reduce((all, share) => all + share, 0);
        expect(sum).toBeLessThanOrEqual(total);
      }
    }
  });
});
