/** What a figure should be, on two cores under TCG with a guest of 512 MiB. */
export interface Aim {
  name: string;
  value: number;
  /** `value` should be below this. */
  below: number;
  unit: "ms" | "us" | "bytes" | "ratio";
  met: boolean;
}

/** Says of each whether it is met. */
export function judged(aims: readonly Omit<Aim, "met">[]): Aim[] {
  return aims.map((aim) => ({ ...aim, met: aim.value < aim.below }));
}
