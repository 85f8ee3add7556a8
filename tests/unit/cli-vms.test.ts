import { describe, expect, test } from "bun:test";
import type { Vm } from "../../runtime/api/mod.ts";
import { placeOf } from "../../runtime/cli/vm-cp.ts";
import { sourceOf } from "../../runtime/cli/vm-create.ts";
import { exitCodeOf } from "../../runtime/cli/vm-exec.ts";
import { vmTable, vmTreeTable } from "../../runtime/cli/vm-tree.ts";

const NOW = Date.parse("2026-01-31T12:00:00.000Z");

function vm(id: string, parent: string | undefined, more: Partial<Vm> = {}): Vm {
  const sizes = { memoryBytes: 256 * 2 ** 20, privateBytes: 3 * 2 ** 20 };
  const place = { owner: "", image: "base", index: parent ? 1 : 0, generation: parent ? 1 : 0 };
  const createdAt = new Date(NOW - 65_000).toISOString();
  return { id, ...(parent !== undefined && { parent }), ...place, createdAt, ...sizes, ...more };
}

describe("vmTreeTable()", () => {
  test("draws each VM below the one that it was forked from, with all that `ls` shows", () => {
    const vms = [
      vm("vm-d", "vm-b", { generation: 2, privateBytes: 512 }),
      vm("vm-c", "vm-a", { index: 2 }),
      vm("vm-a", undefined),
      vm("vm-b", "vm-a"),
      vm("vm-e", "vm-c", { generation: 2 }),
      vm("vm-f", "vm-c", { generation: 2, index: 2 }),
      vm("vm-z", undefined, { createdAt: new Date(NOW).toISOString(), checkpoint: "warm" }),
    ];
    expect(vmTreeTable(vms, NOW)).toBe(
      [
        "VM          GENERATION  INDEX        AGE  PRIVATE  IMAGE  MADE FOR",
        "vm-a                 0      0  1 min 5 s    3 MiB  base",
        "├─ vm-b              1      1  1 min 5 s    3 MiB  base",
        "│  └─ vm-d           2      1  1 min 5 s    512 B  base",
        "└─ vm-c              1      2  1 min 5 s    3 MiB  base",
        "   ├─ vm-e           2      1  1 min 5 s    3 MiB  base",
        "   └─ vm-f           2      2  1 min 5 s    3 MiB  base",
        "vm-z                 0      0       0 ms    3 MiB  base   checkpoint warm",
      ].join("\n"),
    );
  });

  test("shows those whose parent is gone at the left, with what is below them", () => {
    const task = { job: "job_0123456789abcdef01234567", index: 3 };
    const text = vmTreeTable([vm("vm-c", "vm-b", { generation: 2 }), vm("vm-b", "vm-gone", { task })], NOW);
    expect(text.split("\n").slice(1)).toEqual([
      "vm-b              1      1  1 min 5 s    3 MiB  base   task 3 of job_0123456789abcdef01234567",
      "└─ vm-c           2      1  1 min 5 s    3 MiB  base",
    ]);
  });

  test("draws 32 generations of 30 VMs each, every one once", () => {
    const vms = Array.from({ length: 32 * 30 }, (_, at) => {
      const generation = Math.floor(at / 30);
      return vm(`vm-${at}`, generation === 0 ? undefined : `vm-${at - 30}`, { generation });
    });
    const names = [...vmTreeTable(vms, NOW).matchAll(/vm-\d+/g)].map(([name]) => name);
    expect(names.sort()).toEqual(vms.map(({ id }) => id).sort());
  });
});

test("vmTable() keeps the order that it is given", () => {
  const text = vmTable([vm("vm-b", "vm-a"), vm("vm-a", undefined)], NOW);
  expect(text.split("\n").map((line) => line.split(" ")[0])).toEqual(["VM", "vm-b", "vm-a"]);
});

describe("sourceOf()", () => {
  test("takes an image with what belongs to it, a worker, or a checkpoint", () => {
    expect(sourceOf({ image: "base", memory: 128, cpus: 2, warm: "true", lazy: true })).toEqual({
      worker: {
        ...{ image: "base", files: [], memoryMiB: 128, cpus: 2, memory: "lazy" },
        warmUp: ["/bin/sh", "-c", "true"],
      },
    });
    expect(sourceOf({ worker: "w@2" })).toEqual({ worker: "w@2" });
    expect(sourceOf({ checkpoint: "c" })).toEqual({ checkpoint: "c" });
  });

  test.each([
    [{}, /^Nothing/],
    [{ image: "base", worker: "w" }, /^--image and --worker/],
    [{ worker: "w", memory: 128, lazy: true }, /^--worker takes no --memory, --lazy/],
    [{ checkpoint: "c", file: ["/a=b"] }, /^--checkpoint takes no --file/],
  ])("refuses %j", (options, message) => {
    expect(() => sourceOf(options)).toThrow(message);
  });
});

test.each([
  ["vm-1:/a b", { vm: "vm-1", path: "/a b" }],
  ["vm-1:/a:/b\nc", { vm: "vm-1", path: "/a:/b\nc" }],
  ["vm-1:a", { path: "vm-1:a" }],
  ["./vm-1:/a", { path: "./vm-1:/a" }],
  ["/a:/b", { path: "/a:/b" }],
  ["C:/a", { path: "C:/a" }],
  ["-", { path: "-" }],
])("placeOf(%j)", (text, place) => {
  expect(placeOf(text)).toEqual(place);
});

test("exitCodeOf() is as a shell has it", () => {
  expect(exitCodeOf({ exitCode: 7 })).toBe(7);
  expect(exitCodeOf({ signal: "SIGKILL" })).toBe(137);
  expect(exitCodeOf({ signal: "SIG99" })).toBe(128);
});
