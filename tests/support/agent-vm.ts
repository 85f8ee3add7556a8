import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, rmSync, watch } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { codeOf } from "../../errors/errors.ts";
import type { Image } from "../../guest-agent/image/mod.ts";
import { AgentClient } from "../../guest-agent/protocol/mod.ts";
import { cpuModel } from "../../runtime/vm/profile.ts";
import { findQemu } from "../../runtime/vm/qemu-binary.ts";

/** The agent as PID 1 of a VM whose port anybody may connect to, as often as they like. */
export class AgentVm implements AsyncDisposable {
  readonly process: ChildProcess;
  readonly directory: string;
  readonly #exited: Promise<unknown>;
  readonly #sockets: Socket[] = [];
  #console = "";

  private constructor(qemu: ChildProcess, directory: string) {
    this.process = qemu;
    this.directory = directory;
    this.#exited = once(qemu, "exit");
    for (const stream of [qemu.stdout!, qemu.stderr!]) {
      stream.on("data", (chunk) => {
        this.#console += chunk;
      });
    }
  }

  /** Starts QEMU; `disk` and `port` replace what the agent looks for. */
  static async start(image: Image, options: { disk?: string; port?: string } = {}): Promise<AgentVm> {
    const directory = mkdtempSync(join(tmpdir(), "flurry-agent-vm-"));
    const binary = await findQemu();
    const args = argumentsFor(image, directory, { ...options, cpu: cpuModel("tcg", binary) });
    const qemu = spawn(binary.path, args, { stdio: ["ignore", "pipe", "pipe"] });
    const vm = new AgentVm(qemu, directory);
    if (!(await appears(directory, "port", vm.#exited)))
      throw new Error(`QEMU did not start: ${vm.#console}`);
    return vm;
  }

  /** What the guest's kernel, its agent and QEMU have said. */
  get console(): string {
    return this.#console;
  }

  get exited(): Promise<unknown> {
    return this.#exited;
  }

  async socket(): Promise<Socket> {
    for (;;) {
      const socket = connect(join(this.directory, "port"));
      this.#sockets.push(socket);
      socket.on("error", () => undefined);
      try {
        await once(socket, "connect");
        return socket;
      } catch (error) {
        // QEMU's socket is there a moment before it is listened on, and nothing tells.
        if (codeOf(error) !== "ECONNREFUSED" || this.process.exitCode !== null) throw error;
      }
    }
  }

  async client(): Promise<{ client: AgentClient; socket: Socket }> {
    const socket = await this.socket();
    return { client: AgentClient.over(socket, { stderr: () => this.#console }), socket };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    if (this.process.exitCode === null) this.process.kill("SIGKILL");
    await this.#exited;
    rmSync(this.directory, { recursive: true, force: true });
  }
}

function argumentsFor(
  image: Image,
  directory: string,
  options: { cpu: string; disk?: string; port?: string },
): string[] {
  const disk = `driver=raw,node-name=root,read-only=on,file.driver=file,file.filename=${options.disk ?? image.disk}`;
  return [
    ...["-M", "q35", "-accel", "tcg", "-cpu", options.cpu, "-m", "256"],
    ...["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"],
    ...["-kernel", image.kernel, "-initrd", image.initrd],
    ...["-append", "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable no_timer_check"],
    ...["-device", "virtio-serial-pci,max_ports=2,disable-modern=on"],
    ...["-chardev", `socket,id=agent,path=${directory}/port,server=on,wait=off`],
    ...["-device", `virtserialport,nr=1,chardev=agent,name=${options.port ?? "flurry.agent"}`],
    ...["-blockdev", disk, "-device", "virtio-blk-pci,drive=root,disable-modern=on"],
  ];
}

/** Waits for a file; false if `gone` comes first. */
async function appears(directory: string, name: string, gone: Promise<unknown>): Promise<boolean> {
  const found = Promise.withResolvers<boolean>();
  const watcher = watch(directory, () => {
    if (existsSync(join(directory, name))) found.resolve(true);
  });
  try {
    if (existsSync(join(directory, name))) return true;
    return await Promise.race([found.promise, gone.then(() => false)]);
  } finally {
    watcher.close();
  }
}
