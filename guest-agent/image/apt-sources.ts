import { readFile } from "node:fs/promises";
import { FlurryError } from "../../errors/errors.ts";
import { runOrFail } from "./process.ts";

/** One repository of Debian that the host's apt is set up to use. */
export interface AptSource {
  uri: string;
  /** Release as in sources.list, such as bookworm-updates. */
  release: string;
  component: string;
  /** Keyring files or key fingerprints (apt's Signed-By), or the text of an embedded key, or undefined. */
  signedBy: string | undefined;
  /** Origin of the release as it says itself; undefined while apt never fetched it. */
  origin: string | undefined;
}

export interface HostApt {
  /** Code name of the host's Debian release. */
  codename: string;
  arch: string;
  sources: AptSource[];
  /** Lines of apt.conf syntax: the host's proxy and other settings of how to fetch. */
  acquire: string[];
}

const debianOrigin = /^Debian( Backports)?$/;
const fields = ["REPO_URI", "ORIGIN", "RELEASE", "COMPONENT", "SOURCESENTRY", "ARCHITECTURE"];

/**
 * Reads the mirror, keyring, proxy and releases of Debian out of the host's own apt
 * configuration. Repositories of other origins (third parties) are left out.
 *
 * @throws FlurryError REQUIREMENT_MISSING if the host is no Debian or has no Debian source
 */
export async function readHostApt(signal?: AbortSignal): Promise<HostApt> {
  const { codename, arch } = await readHostRelease();
  const listing = await runOrFail(
    "apt-get",
    ["indextargets", "--format", fields.map((field) => `$(${field})`).join("\t"), "Identifier: Packages"],
    { signal },
  );
  const sources: AptSource[] = [];
  for (const line of listing.split("\n")) {
    const [uri, origin, release, component, entry, targetArch] = line.split("\t").map(known);
    if (uri === undefined || release === undefined || component === undefined) continue;
    if (targetArch !== arch || !isDebian(origin, release, component, codename) || uri.startsWith("cdrom:"))
      continue;
    sources.push({ uri, release, component, origin, signedBy: await signedByOf(entry) });
  }
  if (!sources.some((source) => source.release === codename))
    throw noDebian(`it has no source for ${codename}`);
  return { codename, arch, sources, acquire: await readAcquireSettings(signal) };
}

/**
 * Code name and architecture (in Debian's words) of the host.
 *
 * @throws FlurryError REQUIREMENT_MISSING if the host is no Debian
 */
export async function readHostRelease(): Promise<{ codename: string; arch: string }> {
  const release = await readFile("/etc/os-release", "utf8");
  const codename = /^VERSION_CODENAME="?([a-z]+)"?$/m.exec(release)?.[1];
  if (codename === undefined) throw noDebian("/etc/os-release has no VERSION_CODENAME");
  return { codename, arch: process.arch === "x64" ? "amd64" : process.arch };
}

/** Whether a fetched release says that it is Debian's. */
export function isDebianOrigin(origin: string | undefined): boolean {
  return origin !== undefined && debianOrigin.test(origin);
}

/**
 * The host's sources turned to another release: same mirrors, same keyring. Backports are left
 * out, since not every release has them.
 */
export function sourcesFor(host: HostApt, suite: string): AptSource[] {
  if (suite === host.codename) return host.sources;
  return host.sources
    .filter((source) => source.release === host.codename || /-(updates|security)$/.test(source.release))
    .map((source) => ({
      ...source,
      release: source.release.replace(host.codename, suite),
      origin: undefined,
    }));
}

/** apt leaves a field that it does not know as `$(FIELD)`. */
function known(field: string): string | undefined {
  return field === "" || field.startsWith("$(") ? undefined : field;
}

function isDebian(origin: string | undefined, release: string, component: string, codename: string): boolean {
  if (origin !== undefined) return debianOrigin.test(origin) && release.startsWith(codename);
  // Never fetched yet: take what is named as Debian names it; the origin is checked after the fetch.
  return (
    component === "main" &&
    ["", "-updates", "-security", "-backports"].some((end) => release === codename + end)
  );
}

/** The Signed-By value of the sources entry `FILE:N` (line N, or stanza N of a deb822 file). */
async function signedByOf(entry: string | undefined): Promise<string | undefined> {
  const match = /^(.+):(\d+)$/.exec(entry ?? "");
  if (match?.[1] === undefined) return undefined;
  const text = await readFile(match[1], "utf8");
  return match[1].endsWith(".sources")
    ? signedByOfStanza(text, Number(match[2]))
    : /\[[^\]]*\bsigned-by=([^\]\s]+)/.exec(text.split("\n")[Number(match[2]) - 1] ?? "")?.[1];
}

/** Signed-By of the n-th stanza (from 1) of a deb822 sources file (sources.list(5)). */
export function signedByOfStanza(text: string, number: number): string | undefined {
  const withoutComments = text.replace(/^#.*\n?/gm, "");
  const stanza = withoutComments.split(/\n[ \t]*\n/).filter((part) => part.trim() !== "")[number - 1] ?? "";
  const value = /^Signed-By:[ \t]*(.*(?:\n[ \t].*)*)/im.exec(stanza)?.[1];
  if (value === undefined) return undefined;
  // An embedded key: continuation lines lose their first space, a lone dot is an empty line.
  if (value.includes("BEGIN PGP"))
    return `${value
      .replace(/^[ \t]/gm, "")
      .replace(/^\.$/gm, "")
      .trim()}\n`;
  return value
    .trim()
    .split(/[\s,]+/)
    .join(",");
}

/** How the host fetches: proxy, timeouts and validity checks, but not which indexes. */
async function readAcquireSettings(signal: AbortSignal | undefined): Promise<string[]> {
  const dump = await runOrFail("apt-config", ["dump"], { signal });
  const lines = dump
    .split("\n")
    .filter((line) => /^Acquire::/.test(line) || /^Dir::Etc::(netrc|trusted)/.test(line));
  const files = (
    await runOrFail(
      "apt-config",
      [
        "shell",
        ...["NETRC", "Dir::Etc::netrc/f", "NETRCPARTS", "Dir::Etc::netrcparts/d"],
        ...["TRUSTED", "Dir::Etc::trusted/f", "TRUSTEDPARTS", "Dir::Etc::trustedparts/d"],
      ],
      { signal },
    )
  ).matchAll(/^([A-Z]+)='(.*)'$/gm);
  const absolute = [...files].map(([, name, path]) => `Dir::Etc::${name?.toLowerCase()} "${path}";`);
  return [
    ...lines.filter((line) => !/^(Acquire::(IndexTargets|Languages|Changelogs)|Dir::)/.test(line)),
    ...absolute,
  ];
}

function noDebian(reason: string): FlurryError {
  return new FlurryError(
    "REQUIREMENT_MISSING",
    `The host's apt configuration cannot give Debian packages: ${reason}`,
    {
      hint: "Images are built on Debian, from the mirrors that /etc/apt/sources.list.d names",
    },
  );
}
