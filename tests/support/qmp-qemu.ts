import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** The QEMU under test; FLURRY_QEMU names another one. */
export const qemuBinary = process.env.FLURRY_QEMU ?? "qemu-system-x86_64";

/** A QEMU without a machine: enough to talk to, and the quickest to start. */
export const NO_MACHINE = ["-M", "none"];

/** A small stopped PC, whose firmware runs after `cont`. */
export const SMALL_PC = ["-M", "q35", "-accel", "tcg", "-m", "64"];

/** A QEMU for tests of the QMP client: bare sockets, no client yet. */
export class BareQemu implements AsyncDisposable {
  /** The monitor that QEMU opened to us, paused until somebody reads it. */
  readonly socket: Socket;
  /** A second monitor, which QEMU serves; it listens already. */
  readonly servedPath: string;
  /** A directory that goes with this QEMU. */
  readonly directory: string;
  readonly process: ChildProcess;
  readonly #stderr: () => string;

  private constructor(qemu: ChildProcess, directory: string, socket: Socket, stderr: () => string) {
    this.process = qemu;
    this.directory = directory;
    this.socket = socket;
    this.servedPath = join(directory, "served");
    this.#stderr = stderr;
  }

  static async start(args: readonly string[]): Promise<BareQemu> {
    const directory = mkdtempSync(join(tmpdir(), "flurry-qmp-"));
    const path = join(directory, "qmp");
    const server = createServer({ pauseOnConnect: true });
    await once(server.listen(path), "listening");
    // QEMU sets its monitors up in this order, so the served one listens before the other connects.
    const monitors = ["-qmp", `unix:${directory}/served,server=on,wait=off`, "-qmp", `unix:${path}`];
    const qemu = spawn(qemuBinary, [...args, "-nodefaults", "-display", "none", "-S", ...monitors], {
      stdio: ["ignore", "ignore", "pipe"],
    });
    let text = "";
    qemu.stderr?.on("data", (chunk) => {
      text += String(chunk);
    });
    const [socket] = await Promise.race([
      once(server, "connection") as Promise<[Socket]>,
      once(qemu, "exit").then(() => {
        server.close();
        rmSync(directory, { recursive: true, force: true });
        throw new Error(`QEMU ended before it connected: ${text}`);
      }),
    ]);
    server.close();
    return new BareQemu(qemu, directory, socket, () => text);
  }

  stderr(): string {
    return this.#stderr();
  }

  /** Resolves when the process is gone. */
  async exited(): Promise<void> {
    if (this.process.exitCode === null && this.process.signalCode === null) await once(this.process, "exit");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill("SIGKILL");
    this.socket.destroy();
    await this.exited();
    rmSync(this.directory, { recursive: true, force: true });
  }
}
