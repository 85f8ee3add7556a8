import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** An import, and the rule that forbids it; undefined for one that is allowed. */
type Arrow = readonly [from: string, to: string, rule: string | undefined];

const arrows: readonly Arrow[] = [
  ["errors/a.ts", "qmp/leaf.ts", "room-errors"],
  ["qmp/a.ts", "errors/leaf.ts", "room-qmp"],
  ["qmp/b.ts", "runtime/leaf.ts", "room-qmp"],
  ["guest-agent/protocol/a.ts", "errors/leaf.ts", "room-guest-agent/protocol"],
  ["guest-agent/image/a.ts", "qmp/leaf.ts", "room-guest-agent/image"],
  ["guest-agent/init/a.ts", "runtime/vm/leaf.ts", "room-guest-agent/init"],
  ["memserver/a.ts", "runtime/vm/leaf.ts", "room-memserver"],
  ["memserver/b.ts", "qmp/leaf.ts", undefined],
  ["runtime/net/a.ts", "runtime/vm/leaf.ts", "room-runtime/net"],
  ["runtime/vm/a.ts", "runtime/fork/leaf.ts", "room-runtime/vm"],
  ["runtime/vm/b.ts", "memserver/leaf.ts", "room-runtime/vm"],
  ["runtime/vm/c.ts", "runtime/leaf.ts", undefined],
  ["runtime/fork/a.ts", "runtime/jobs/leaf.ts", "room-runtime/fork"],
  ["runtime/fork/b.ts", "memserver/leaf.ts", undefined],
  ["runtime/fork/c.ts", "guest-agent/protocol/leaf.ts", undefined],
  ["runtime/jobs/a.ts", "runtime/gateway/leaf.ts", "room-runtime/jobs"],
  ["runtime/b.ts", "runtime/vm/leaf.ts", "shared-files-know-no-room"],
  ["runtime/fork/d.ts", "runtime/cli/leaf.ts", "nothing-imports-the-cli"],
  ["bench/a.ts", "runtime/cli/leaf.ts", "nothing-imports-the-cli"],
  ["runtime/cli/a.ts", "runtime/gateway/leaf.ts", undefined],
  ["runtime/cli/b.ts", "tests/leaf.ts", "product-imports-no-tests"],
];

describe("the rules of .dependency-cruiser.cjs", () => {
  using tree = plantTree();
  const violations = cruise(tree.path);

  test.each(arrows.filter(([, , rule]) => rule !== undefined))("refuse %s -> %s as %s", (from, to, rule) => {
    expect(violations.get(`${from} -> ${to}`) ?? []).toContain(rule!);
  });

  test.each(arrows.filter(([, , rule]) => rule === undefined))("allow %s -> %s", (from, to) => {
    expect(violations.get(`${from} -> ${to}`)).toBeUndefined();
  });

  test("see imports of types alone", () => {
    expect(violations.get("memserver/types.ts -> runtime/fork/leaf.ts")).toContain("room-memserver");
  });

  test("see packages in rooms that stand alone, cycles, and what is not there", () => {
    expect(violations.get("qmp/package.ts -> zod")).toContain("qmp-and-protocol-stand-alone");
    expect(violations.get("examples/left.ts -> examples/right.ts")).toContain("no-cycles");
    expect(violations.get("examples/lost.ts -> ./nowhere.ts")).toContain("no-unresolved");
  });
});

interface Tree extends Disposable {
  path: string;
}

/** A small tree of its own with one file for each arrow, so that this checkout stays untouched. */
function plantTree(): Tree {
  const path = mkdtempSync(join(tmpdir(), "flurry-rooms-"));
  const write = (file: string, text: string) => {
    mkdirSync(dirname(join(path, file)), { recursive: true });
    writeFileSync(join(path, file), text);
  };
  for (const file of [".dependency-cruiser.cjs", "tsconfig.json", "package.json"]) {
    cpSync(join(root, file), join(path, file));
  }
  symlinkSync(join(root, "node_modules"), join(path, "node_modules"));
  const specifier = (from: string, to: string) => `${"../".repeat(from.split("/").length - 1)}${to}`;
  for (const [from, to] of arrows) {
    write(to, "export const leaf = 1;\n");
    write(from, `export { leaf } from "${specifier(from, to)}";\n`);
  }
  write(
    "memserver/types.ts",
    `import type { Leaf } from "../runtime/fork/leaf.ts";\nexport type Own = Leaf;\n`,
  );
  write("runtime/fork/leaf.ts", "export type Leaf = 1;\nexport const leaf = 1;\n");
  write("qmp/package.ts", `export { z } from "zod";\n`);
  write("examples/left.ts", `export { right } from "./right.ts";\nexport const left = 1;\n`);
  write("examples/right.ts", `export { left } from "./left.ts";\nexport const right = 1;\n`);
  write("examples/lost.ts", `export { lost } from "./nowhere.ts";\n`);
  return { path, [Symbol.dispose]: () => rmSync(path, { recursive: true }) };
}

/** Runs dependency-cruiser there: the names of the violated rules by `from -> to`. */
function cruise(directory: string): Map<string, string[]> {
  const program = join(root, "node_modules/.bin/depcruise");
  const rooms = [...new Set(arrows.map(([from]) => from.split("/")[0]!)), "examples"];
  const args = ["--bun", program, "--config", ".dependency-cruiser.cjs", "--output-type", "json", ...rooms];
  const { stdout, stderr } = spawnSync(process.execPath, args, { cwd: directory, encoding: "utf8" });
  const violations = new Map<string, string[]>();
  if (!stdout.startsWith("{")) throw new Error(`Cannot run dependency-cruiser: ${stderr}${stdout}`);
  for (const { from, to, rule } of JSON.parse(stdout).summary.violations) {
    const target = String(to).replace(/^.*node_modules\/([^/]+)\/.*$/, "$1");
    const key = `${from} -> ${target}`;
    violations.set(key, [...(violations.get(key) ?? []), rule.name]);
  }
  return violations;
}
