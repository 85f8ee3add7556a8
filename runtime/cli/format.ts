/** A column of a table. */
export interface Column {
  title: string;
  /** @default "left" */
  align?: "left" | "right";
}

/**
 * Sets rows in aligned columns, two blanks apart, under a line of titles (left out when all are
 * empty). Ends without a newline.
 */
export function formatTable(columns: readonly Column[], rows: readonly (readonly string[])[]): string {
  const titled = columns.some((column) => column.title !== "");
  const lines = titled ? [columns.map((column) => column.title), ...rows] : rows;
  const widths = columns.map((_, index) => Math.max(0, ...lines.map((line) => (line[index] ?? "").length)));
  return lines
    .map((line) =>
      columns
        .map((column, index) => {
          const cell = line[index] ?? "";
          const width = widths[index] ?? 0;
          return column.align === "right" ? cell.padStart(width) : cell.padEnd(width);
        })
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** A duration given in milliseconds, in the unit that reads best: `0.42 ms`, `38 ms`, `4.1 s`, `2 min 5 s`. */
export function formatMs(ms: number): string {
  if (ms < 10) return `${trimZeros(ms.toFixed(2))} ms`;
  if (ms < 100) return `${trimZeros(ms.toFixed(1))} ms`;
  if (ms < 999.5) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${trimZeros((ms / 1000).toFixed(1))} s`;
  const seconds = Math.round(ms / 1000);
  const rest = seconds % 60;
  return rest === 0 ? `${Math.floor(seconds / 60)} min` : `${Math.floor(seconds / 60)} min ${rest} s`;
}

/** A size given in bytes, in binary units: `512 B`, `70 KiB`, `1.5 GiB`. */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${value < 100 && unit > 0 ? trimZeros(value.toFixed(1)) : Math.round(value)} ${units[unit]}`;
}

function trimZeros(digits: string): string {
  return digits.includes(".") ? digits.replace(/\.?0+$/, "") : digits;
}
