/** What a benchmark says of a set of measurements, in their unit. */
export interface Distribution {
  p50: number;
  p99: number;
  max: number;
}

/**
 * Median, 99th percentile (nearest rank) and largest of a set of measurements.
 *
 * @throws RangeError if there are none: a figure that was not measured is not shown as one
 */
export function distributionOf(values: readonly number[]): Distribution {
  if (values.length === 0) throw new RangeError("No measurements");
  const sorted = [...values].sort((a, b) => a - b);
  const rank = (share: number) => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? Number.NaN;
  return { p50: rank(0.5), p99: rank(0.99), max: rank(1) };
}
