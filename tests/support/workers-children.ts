import { execFile } from "node:child_process";
import { existsSync, readFileSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { promisify } from "node:util";
import { isRoot } from "../../runtime/home.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { guestProgram, temporaryDirectory } from "./vm.ts";

/** Milliseconds that no QEMU takes to start. A socket and its directory are not made at one time. */
const START_MS = 20;

/** A child that runs, as seen from outside of its runtime. */
export interface RunningChild {
  pid: number;
  /** Directory of its sockets: `q` (QMP) and `a` (agent). */
  dir: string;
}

/**
 * Children that run now, without shells that wait or are just being started, and without booting
 * parents.
 *
 * @param run - directory of one runtime (`host.owner.run`), or the one above it (`$FLURRY_RUN`)
 */
export function runningChildren(run: string): RunningChild[] {
  return processesOf(run)
    .map((pid) => ({ pid, dir: directoryOf(pid) }))
    .filter((vm): vm is RunningChild => vm.dir !== undefined && hasLoaded(vm.dir));
}

/** Directory of a VM that was started to become a child. */
function directoryOf(pid: number): string | undefined {
  const argv = ifThere(() => readFileSync(`/proc/${pid}/cmdline`, "latin1").split("\0")) ?? [];
  return argv.includes("-incoming") ? /^unix:(.*)\/m$/.exec(argv.at(-2) ?? "")?.[1] : undefined;
}

/**
 * Whether a VM has taken its device stream. The socket for it is made when QEMU is up, after those of
 * the host, and goes when the stream is loaded; both show in the directory's time.
 */
function hasLoaded(dir: string): boolean {
  const changed = ifThere(() => statSync(dir).mtimeMs);
  const hostsSocket = ifThere(() => statSync(join(dir, "a")).mtimeMs);
  if (changed === undefined || hostsSocket === undefined) return false;
  return changed > hostsSocket + START_MS && !existsSync(join(dir, "m"));
}

/** What is read of a process or its files; undefined when they are gone since they were listed. */
function ifThere<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch (error) {
    if (error instanceof Error && "code" in error && (error.code === "ENOENT" || error.code === "ESRCH")) {
      return undefined;
    }
    throw error;
  }
}

/** Whether a channel can be cut here: it takes the right to trace another user's process. */
export const canCutChannels = isRoot();

/** Cuts the channels of agents from outside: QEMU and its guest live on, and nobody hears of them. */
export class ChannelCutter implements Disposable {
  readonly #program: string;
  readonly #directory: string;

  private constructor(program: string, directory: string) {
    this.#program = program;
    this.#directory = directory;
  }

  static async make(): Promise<ChannelCutter> {
    const { path } = temporaryDirectory();
    const program = await guestProgram(join(import.meta.dirname, "cut-channel.c"), path);
    return new ChannelCutter(program, path);
  }

  /** @throws Error when the child, or its channel, is gone already */
  async cut(child: RunningChild): Promise<void> {
    await promisify(execFile)(this.#program, [String(child.pid), `${child.dir}/a`]);
  }

  [Symbol.dispose](): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
