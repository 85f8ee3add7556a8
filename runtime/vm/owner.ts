import { chmodSync, mkdirSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync } from "node:fs";
import { join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/** Milliseconds that a killed process gets to vanish; SIGKILL only waits for the kernel. */
const REAP_DEADLINE_MS = 10_000;
/** Longest path of a unix socket (unix(7)), and what VMs add to the directory of their runtime. */
const SOCKET_PATH_BYTES = 107;
const VM_PATH_BYTES = "/1234567/q".length;

/** Begins the names of temporary files; those of their owner follow. */
const TEMPORARY = ".tmp-";

const FOREIGN_KEEP_MS = 24 * 60 * 60 * 1000;

let sequence = 0;

/**
 * The directories of one runtime. Everything that it starts has its files below them, and carries
 * their path in its command line. So whatever a killed runtime left behind is found again by name:
 * a process by its argv (never by a stored PID alone, which may be somebody else's by now), a file
 * by its directory.
 */
export class Owner implements AsyncDisposable {
  /** Sockets and small files of this runtime. */
  readonly run: string;
  /** RAM of its booting parents, in a tmpfs. */
  readonly shm: string;
  #nextVm = 0;

  private constructor(run: string, shm: string) {
    this.run = run;
    this.shm = shm;
  }

  /**
   * Reaps what dead runtimes left below both roots, then makes the directories of this one.
   *
   * @throws FlurryError BAD_ARGUMENT when `run` is too long for sockets
   */
  static async open(roots: { run: string; shm: string }): Promise<Owner> {
    await reapLeftovers(roots);
    const name = ownerName(process.pid, startTimeOf(process.pid)!, sequence++);
    const owner = new Owner(join(roots.run, name), join(roots.shm, name));
    if (Buffer.byteLength(owner.run) + VM_PATH_BYTES > SOCKET_PATH_BYTES) {
      throw new FlurryError(
        "BAD_ARGUMENT",
        `Paths of sockets in "${roots.run}" are too long for the kernel`,
        {
          hint: "set FLURRY_RUN to a directory with a shorter path",
        },
      );
    }
    for (const dir of [owner.run, owner.shm]) {
      mkdirSync(dir);
      // Not by mkdir's mode, which a umask cuts: the user of the VMs must be able to pass through.
      chmodSync(dir, 0o711);
    }
    return owner;
  }

  /** A path below `run` for one VM, unique in this runtime. Not yet made. */
  vmDir(): string {
    return join(this.run, String(this.#nextVm++));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await killByArgv(this.run);
    rmSync(this.run, { recursive: true, force: true });
    rmSync(this.shm, { recursive: true, force: true });
  }
}

/** What a runtime's directories are called: they say who owns them, guarded against PID reuse. */
export function ownerName(pid: number, startTime: string, sequenceNumber: number): string {
  return `${pidNamespace()}-${pid}-${startTime}-${sequenceNumber}`;
}

/** Which processes PIDs stand for here: containers may share a directory and yet have PIDs of their own. */
function pidNamespace(): string {
  return readlinkSync("/proc/self/ns/pid").replace(/\D/g, "");
}

/** Whether the owner that a name begins with (namespace, PID, start time) is known to be dead. */
function isDead(name: string): boolean {
  const [namespace, pid, startTime] = name.split("-");
  return namespace === pidNamespace() && startTimeOf(Number(pid)) !== startTime;
}

/**
 * Kills the processes and removes the files of every runtime that is dead.
 *
 * @returns names of the runtimes that were reaped.
 */
export async function reapLeftovers(roots: { run: string; shm: string }): Promise<string[]> {
  const reaped = new Set<string>();
  for (const root of [roots.run, roots.shm]) {
    for (const name of readdirSync(root)) {
      if (!/^\d+-\d+-\d+-\d+$/.test(name) || !isDead(name)) continue;
      await killByArgv(join(root, name));
      rmSync(join(root, name), { recursive: true, force: true });
      reaped.add(name);
    }
  }
  return [...reaped];
}

/** Starts the name of a temporary file or directory that dies with this process. */
export function temporaryPrefix(): string {
  return `${TEMPORARY}${ownerName(process.pid, startTimeOf(process.pid)!, sequence++)}-`;
}

/**
 * Removes temporary files of dead processes from a directory. Those of another PID namespace go when
 * they are a day old: a container that is gone never comes back to them, and none is needed that long.
 */
export function reapLeftoverFiles(dir: string): void {
  for (const name of readdirSync(dir)) {
    if (!name.startsWith(TEMPORARY)) continue;
    const owner = name.slice(TEMPORARY.length);
    const path = join(dir, name);
    if (isDead(owner) || (isForeign(owner) && isOlderThan(path, FOREIGN_KEEP_MS))) {
      rmSync(path, { recursive: true, force: true });
    }
  }
}

function isForeign(name: string): boolean {
  return /^\d+-\d+-\d+-\d+-/.test(name) && name.split("-")[0] !== pidNamespace();
}

function isOlderThan(path: string, ms: number): boolean {
  const entry = statSync(path, { throwIfNoEntry: false });
  return entry !== undefined && Date.now() - entry.mtimeMs > ms;
}

/** Processes whose command line names a path below `dir`. */
export function processesOf(dir: string): number[] {
  const needle = `${dir}/`;
  return readdirSync("/proc")
    .filter((entry) => /^\d+$/.test(entry) && Number(entry) !== process.pid)
    .map(Number)
    .filter((pid) => commandLineOf(pid).includes(needle));
}

async function killByArgv(dir: string): Promise<void> {
  const deadline = performance.now() + REAP_DEADLINE_MS;
  for (;;) {
    const pids = processesOf(dir).filter(killOne);
    if (pids.length === 0) return;
    if (performance.now() > deadline) {
      throw new FlurryError("INTERNAL", `Processes ${pids.join(", ")} of "${dir}" do not die`);
    }
    // The end of a process that is not our child raises no event that Bun or Deno could wait for.
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

/** Whether it was there and ours: a VM of this runtime is never another user's that it may not kill. */
function killOne(pid: number): boolean {
  try {
    return process.kill(pid, "SIGKILL");
  } catch (error) {
    const code = codeOf(error);
    if (code !== "ESRCH" && code !== "EPERM") throw error;
    return false;
  }
}

/** Start time of a process in clock ticks since boot (proc(5), stat field 22); undefined when it is gone. */
export function startTimeOf(pid: number): string | undefined {
  const stat = readProc(pid, "stat");
  // The command name may hold spaces and parentheses: fields are counted from the last one.
  return stat === "" ? undefined : stat.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
}

function commandLineOf(pid: number): string {
  return readProc(pid, "cmdline");
}

function readProc(pid: number, file: string): string {
  try {
    return readFileSync(`/proc/${pid}/${file}`, "latin1");
  } catch (error) {
    const code = codeOf(error);
    if (code === "ENOENT" || code === "ESRCH" || code === "EACCES") return "";
    throw error;
  }
}
