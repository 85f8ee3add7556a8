/** How often each source gave a value that it had given before; those that never did are left out. */
export function collisions(rows: readonly Record<string, string>[]): Record<string, number> {
  const counts: Record<string, number> = {};
  for (const source of new Set(rows.flatMap((row) => Object.keys(row)))) {
    const values = rows.flatMap((row) => row[source] ?? []);
    const repeated = values.length - new Set(values).size;
    if (repeated > 0) counts[source] = repeated;
  }
  return counts;
}
