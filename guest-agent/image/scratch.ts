import { chmod, mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { run } from "./process.ts";

const prefix = "flurry-image-";

/**
 * Makes a directory for one build in $TMPDIR or /var/tmp (a chroot is too large for a /tmp in
 * RAM), first removing those whose builder died. Others may pass through but not list it: without
 * root, mmdebstrap's subordinate user works there.
 */
export async function openScratch(): Promise<AsyncDisposable & { path: string }> {
  const parent = process.env.TMPDIR || "/var/tmp";
  await sweep(parent);
  const owner = `${process.pid}-${await startTime(process.pid)}`;
  const path = await mkdtemp(join(parent, `${prefix}${owner}-`));
  await chmod(path, 0o711);
  return {
    path,
    async [Symbol.asyncDispose]() {
      await removeTree(path);
    },
  };
}

/** Removes what builds left behind that were killed. */
async function sweep(parent: string): Promise<void> {
  for (const name of await readdir(parent)) {
    const match = /^flurry-image-(\d+)-(\d+)-/.exec(name);
    if (match === null || (await startTime(Number(match[1]))) === match[2]) continue;
    await removeTree(join(parent, name));
  }
}

/** The tick at which a process started (proc(5), stat field 22), which tells it from a later one of its PID. */
async function startTime(pid: number): Promise<string | undefined> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined);
  return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
}

async function removeTree(path: string): Promise<void> {
  if (process.getuid?.() !== 0) {
    // A chroot that was left behind belongs to subordinate users, whom only their namespace can act for.
    const chroots = await readdir(join(path, "tmp")).catch(() => []);
    for (const name of chroots) {
      await run("mmdebstrap", [
        "--unshare-helper",
        "rm",
        "-rf",
        "--one-file-system",
        join(path, "tmp", name),
      ]);
    }
  }
  try {
    await rm(path, { recursive: true, force: true });
  } catch (error) {
    // What is another user's is that user's to remove.
    const code = (error as NodeJS.ErrnoException).code;
    if (code !== "EACCES" && code !== "EPERM") throw error;
  }
}
