import { accessSync, constants, globSync, readFileSync } from "node:fs";
import { delimiter, join } from "node:path";

/** One line of requirements.txt: a Debian package and how to see that it is there. */
export interface Requirement {
  /** Who needs it: every command that starts VMs, the same when not root, or only the tests. */
  who: "run" | "user" | "test";
  /** A command's name, or a path pattern when it has a slash. */
  probe: string;
  /** Debian's name of the package. */
  package: string;
  purpose: string;
}

/** The list that `./flurry` installs from: both read the same file. */
export function readRequirements(): Requirement[] {
  const table = readFileSync(new URL("./requirements.txt", import.meta.url), "utf8");
  return parseRequirements(table);
}

/** Reads the columns of requirements.txt; lines that start with `#` are remarks. */
export function parseRequirements(table: string): Requirement[] {
  const requirements: Requirement[] = [];
  for (const [index, line] of table.split("\n").entries()) {
    if (line.trim() === "" || line.startsWith("#")) continue;
    const [who, probe, name, ...purpose] = line.split(/\s+/);
    if ((who !== "run" && who !== "user" && who !== "test") || !probe || !name || purpose.length === 0) {
      throw new SyntaxError(`Cannot read line ${index + 1} of requirements.txt: "${line}"`);
    }
    requirements.push({ who, probe, package: name, purpose: purpose.join(" ") });
  }
  return requirements;
}

/** Where a requirement was found: the command's path or the first file of the pattern. */
export function findProbe(probe: string, path = process.env.PATH ?? ""): string | undefined {
  if (probe.includes("/")) return globSync(probe)[0];
  return path
    .split(delimiter)
    .map((directory) => join(directory, probe))
    .find(isExecutable);
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    // Whatever forbids it, a shell would not find the command there either.
    return false;
  }
}
