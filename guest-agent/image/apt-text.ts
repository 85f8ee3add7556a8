/** File names out of `apt-get --print-uris`: `'URI' FILE SIZE HASH`. */
export function parseUris(listing: string): string[] {
  return [...listing.matchAll(/^'[^']*' (\S+\.deb) \d+/gm)].map((match) => match[1] ?? "").sort();
}

/** Kernel image and modules packages that a kernel package depends on, as NAME=VERSION. */
export function dependencies(record: string, version: string): string[] {
  const names = (field(record, "Depends") ?? "").match(/\blinux-(?:image|modules)-[a-z0-9+.~-]+/g) ?? [];
  return names.map((name) => `${name}=${version}`);
}

/** A single-line field of an index record. */
export function field(record: string, name: string): string | undefined {
  return new RegExp(`^${name}: (.*)$`, "m").exec(record)?.[1];
}

/** Whether a Debian version's first two numbers are below the given ones. */
export function olderThan(version: string, [major, minor]: readonly [number, number]): boolean {
  const match = /^(\d+)\.(\d+)/.exec(version);
  const found = [Number(match?.[1]), Number(match?.[2])];
  return found[0]! < major || (found[0] === major && found[1]! < minor);
}

/** The reason that apt gave, of the lines it wrote. */
export function errorLine(tail: string[]): string {
  const errors = withoutStatus(tail).filter((line) => line.startsWith("E: "));
  return (errors[0] ?? tail.at(-1) ?? "apt gave no reason").replace(/^E: /, "");
}

/** The lines without those of APT::Status-Fd. */
export function withoutStatus(tail: string[]): string[] {
  return tail.filter((line) => !/^(dl|pm)status:/.test(line));
}

/** A hint at the package that may have been meant. */
export function nearestName(name: string, known: Set<string>): string {
  const stem = name.slice(0, Math.max(3, name.length - 2));
  const close = [...known].filter((other) => other.startsWith(stem)).sort((a, b) => a.length - b.length);
  return close[0] === undefined
    ? "Search for packages with: apt-cache search WORD"
    : `Did you mean "${close[0]}"?`;
}
