import type { Aim } from "../../bench/aims.ts";
import { formatBytes, formatMs, formatTable } from "./format.ts";

/** The aims of a bench as text. */
export function aimTable(aims: readonly Aim[]): string {
  const rows = aims.map((aim) => [
    aim.met ? "met" : "missed",
    aim.name,
    show(aim, aim.value),
    show(aim, aim.below),
  ]);
  const columns = [
    { title: "" },
    { title: "aim (two cores, TCG, 512 MiB)" },
    { title: "measured", align: "right" as const },
    { title: "below", align: "right" as const },
  ];
  return formatTable(columns, rows);
}

function show({ unit }: Aim, value: number): string {
  if (unit === "ms") return formatMs(value);
  if (unit === "us") return `${value.toFixed(0)} µs`;
  return unit === "bytes" ? formatBytes(value) : value.toFixed(3);
}
