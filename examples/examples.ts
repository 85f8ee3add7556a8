/** A program of the image `examples`. */
export interface Example {
  name: string;
  /** Path in the guest. */
  program: string;
  /** Children that it forks. */
  children: number;
}

export const EXAMPLES: readonly Example[] = [
  { name: "blast", program: "/opt/examples/blast.py", children: 4 },
  { name: "monte-carlo", program: "/opt/examples/option.py", children: 4 },
  { name: "hmmer", program: "/opt/examples/globins.py", children: 4 },
  { name: "compile", program: "/opt/examples/build.py", children: 4 },
  { name: "sat", program: "/opt/examples/search.py", children: 8 },
];
