/** A program of the image `examples`. */
export interface Example {
  name: string;
  /** Path in the guest. */
  program: string;
  /** Children that it forks. @default one for each processor of the host */
  children?: number;
  /** What its arguments end with, after how it is to work. */
  ends?: readonly string[];
  /** Whether the first share that has `found` something makes the others needless. @default false */
  isRace?: boolean;
}

const sat = { program: "/opt/examples/search.py", children: 8 };

export const EXAMPLES: readonly Example[] = [
  { name: "blast", program: "/opt/examples/blast.py" },
  { name: "monte-carlo", program: "/opt/examples/option.py" },
  { name: "hmmer", program: "/opt/examples/globins.py" },
  { name: "compile", program: "/opt/examples/build.py" },
  { name: "sat-model", ...sat, ends: ["satisfiable"], isRace: true },
  { name: "sat-proof", ...sat, ends: ["unsatisfiable"] },
];
