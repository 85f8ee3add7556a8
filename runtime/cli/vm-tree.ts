import type { Vm } from "../client/mod.ts";
import { formatBytes, formatMs, formatTable } from "./format.ts";

const COLUMNS = [
  { title: "VM" },
  { title: "GENERATION", align: "right" as const },
  { title: "INDEX", align: "right" as const },
  { title: "AGE", align: "right" as const },
  { title: "PRIVATE", align: "right" as const },
  { title: "IMAGE" },
  { title: "MADE FOR" },
];

/** A table of VMs. @param now - ms since 1970 */
export function vmTable(vms: readonly Vm[], now: number): string {
  return formatTable(
    COLUMNS,
    vms.map((vm) => rowOf(vm, vm.id, now)),
  );
}

/**
 * The same with each VM below the one that it was forked from. One whose parent is gone stands at the left, as the
 * first of what is left of its tree.
 *
 * @param now - ms since 1970
 */
export function vmTreeTable(vms: readonly Vm[], now: number): string {
  const known = new Set(vms.map(({ id }) => id));
  const children = Map.groupBy([...vms].sort(byAge), ({ parent }) =>
    parent !== undefined && known.has(parent) ? parent : "",
  );
  const rows: string[][] = [];
  const add = (vm: Vm, own: string, below: string): void => {
    rows.push(rowOf(vm, `${own}${vm.id}`, now));
    const its = children.get(vm.id) ?? [];
    its.forEach((child, at) => {
      const isLast = at === its.length - 1;
      add(child, `${below}${isLast ? "└─ " : "├─ "}`, `${below}${isLast ? "   " : "│  "}`);
    });
  };
  for (const vm of children.get("") ?? []) add(vm, "", "");
  return formatTable(COLUMNS, rows);
}

function byAge(a: Vm, b: Vm): number {
  return Date.parse(a.createdAt) - Date.parse(b.createdAt) || a.index - b.index;
}

function rowOf(vm: Vm, name: string, now: number): string[] {
  const { generation, index, createdAt, privateBytes, image } = vm;
  const age = formatMs(Math.max(0, now - Date.parse(createdAt)));
  return [name, String(generation), String(index), age, formatBytes(privateBytes), image, reasonOf(vm)];
}

function reasonOf({ task, checkpoint }: Vm): string {
  if (task) return `task ${task.index} of ${task.job}`;
  return checkpoint === undefined ? "" : `checkpoint ${checkpoint}`;
}
