import { FlurryError } from "../../../errors/errors.ts";
import { type AgentClient, AgentError } from "../../../guest-agent/protocol/mod.ts";
import type { PassedFile } from "./ending.ts";

const OUT_DIR = "/out";
/** Most files of one child, and most bytes of all of them. */
const FILES_MAX = 1000;
const BYTES_MAX = 256 * 1024 * 1024;

/**
 * Copies what a child has written below /out since it was forked into its parent, as it comes.
 *
 * @param sinceMs - when it was forked, by the guest's clock, which was set forward then; ms since 1970
 * @param to - directory in the parent, which need not exist
 * @throws FlurryError TASK_FAILED when it is too much; AgentError of either VM
 */
export async function passFiles(
  child: AgentClient,
  sinceMs: number,
  parent: AgentClient,
  to: string,
  signal: AbortSignal,
): Promise<PassedFile[]> {
  const entries = await listed(child, signal);
  const own = entries.filter(({ type, mtimeMs }) => type === "file" && mtimeMs > sinceMs);
  const bytes = own.reduce((sum, { size }) => sum + size, 0);
  if (own.length > FILES_MAX || bytes > BYTES_MAX) {
    const most = `${FILES_MAX} files and ${BYTES_MAX} bytes`;
    throw new FlurryError(
      "TASK_FAILED",
      `A child left ${own.length} files of ${bytes} bytes, more than ${most}`,
    );
  }
  // It would be two lines of what its parent is told.
  const torn = own.find(({ path }) => path.includes("\n"));
  if (torn) throw new FlurryError("TASK_FAILED", `A child left a file with an end of line in its name`);
  const passed: PassedFile[] = [];
  for (const { path, mode } of own) {
    const target = `${to}/${path}`;
    const file = await child.openFile(`${OUT_DIR}/${path}`, { signal });
    const { size } = await parent.putFile(target, file.body, { mode: mode & 0o777, signal });
    passed.push({ path: target, size });
  }
  return passed;
}

async function listed(child: AgentClient, signal: AbortSignal) {
  try {
    return await child.list(OUT_DIR, { signal, maxEntries: FILES_MAX * 10 });
  } catch (error) {
    if (error instanceof AgentError && error.errno === "ENOENT") return [];
    throw error;
  }
}
