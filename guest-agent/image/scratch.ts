import { chmod, mkdtemp, readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./process.ts";

export type TemporaryDirectory = AsyncDisposable & { path: string };

/**
 * Makes the directory in which one build works, in $TMPDIR or /var/tmp (a chroot is too large for
 * a /tmp in RAM). Others may pass through but not list it: without root, mmdebstrap's subordinate
 * user works there.
 */
export async function openScratch(): Promise<TemporaryDirectory> {
  const directory = await openOwned(process.env.TMPDIR || "/var/tmp", "flurry-image-");
  await chmod(directory.path, 0o711);
  return directory;
}

/**
 * Makes a directory whose name tells the process that owns it, removed when disposed. First those
 * of the same prefix go whose owner died without that.
 */
export async function openOwned(parent: string, prefix: string): Promise<TemporaryDirectory> {
  await sweep(parent, prefix);
  const path = await mkdtemp(join(parent, `${prefix}${process.pid}-${await startTime(process.pid)}-`));
  return {
    path,
    async [Symbol.asyncDispose]() {
      await removeTree(path);
    },
  };
}

async function sweep(parent: string, prefix: string): Promise<void> {
  for (const name of await readdir(parent)) {
    const owner = name.startsWith(prefix) ? /^(\d+)-(\d+)-/.exec(name.slice(prefix.length)) : null;
    if (owner === null || (await startTime(Number(owner[1]))) === owner[2]) continue;
    await removeTree(join(parent, name));
  }
}

/** The tick at which a process started (proc(5), stat field 22), which tells it from a later one of its PID. */
async function startTime(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
}

/** Never across a mount, although none should be left. */
const remove = ["rm", "-rf", "--one-file-system", "--"];

async function removeTree(path: string): Promise<void> {
  const chroots = process.getuid?.() === 0 ? [] : await readdir(join(path, "tmp")).catch(() => []);
  for (const name of chroots) {
    // A chroot that was left behind belongs to subordinate users, whom only their namespace can act for.
    await run("mmdebstrap", ["--unshare-helper", ...remove, join(path, "tmp", name)]);
  }
  // What is another user's stays: it is that user's to remove.
  const [program = "", ...args] = remove;
  await run(program, [...args, path]);
}
