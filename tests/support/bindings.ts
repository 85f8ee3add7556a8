import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { promisify } from "node:util";
import { GUEST_SHELL_SOURCES } from "../../guest-agent/bindings/build.ts";

const sources = join(import.meta.dirname, "../../guest-agent/bindings/src");
const hooks = join(import.meta.dirname, "../../guest-agent/hooks");
const run = promisify(execFile);

export type Binding = "C" | "Python" | "TypeScript";

/** Programs that speak fork calls, which tests compile under sanitizers into one directory. */
export class Bindings {
  readonly #directory: string;

  private constructor(directory: string) {
    this.#directory = directory;
  }

  static async build(directory: string): Promise<Bindings> {
    const flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-g", "-O1"];
    const sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];
    const clang = (output: string, ...files: string[]) =>
      run("clang", [...flags, ...sanitizers, "-I", sources, "-o", join(directory, output), ...files], {
        cwd: sources,
      });
    await Promise.all([
      clang("driver", join(import.meta.dirname, "calls-driver.c"), "flurry.c"),
      clang("flurry", ...GUEST_SHELL_SOURCES),
    ]);
    return new Bindings(directory);
  }

  /** What a binding's driver prints of commands, line by line. */
  async call(binding: Binding, socket: string, commands: readonly string[]): Promise<string[]> {
    const argv = {
      C: [join(this.#directory, "driver")],
      Python: ["python3", "-B", join(import.meta.dirname, "calls-driver.py")],
      TypeScript: [process.execPath, "--no-env-file", join(import.meta.dirname, "calls-driver.ts")],
    }[binding];
    const { stdout, stderr, code } = await this.run([...argv, ...commands], socket);
    if (stderr !== "" || code !== 0) throw new Error(`${binding} ended with ${code}: ${stderr}`);
    return stdout.split("\n").slice(0, -1);
  }

  /** A program that finds `flurry` in its path. Its output is Latin-1. */
  async run(argv: readonly string[], socket: string, input = "", env: Record<string, string> = {}) {
    const child = spawn(argv[0]!, argv.slice(1), {
      env: {
        ...process.env,
        ...{ PATH: `${this.#directory}:${process.env.PATH ?? ""}`, TMPDIR: this.#directory },
        // Unbuffered, Python loses what a write that was interrupted has left.
        ...{ PYTHONPATH: hooks, PYTHONUNBUFFERED: "", FLURRY_VM_SOCKET: socket },
        ...env,
      },
    });
    let [stdout, stderr] = ["", ""];
    child.stdout.setEncoding("latin1").on("data", (text) => {
      stdout += text;
    });
    child.stderr.setEncoding("latin1").on("data", (text) => {
      stderr += text;
    });
    // Who does not read it is the test's business.
    child.stdin.on("error", () => undefined);
    child.stdin.end(Buffer.from(input, "latin1"));
    const [code] = await once(child, "close");
    return { stdout, stderr, code: code as number | null };
  }
}
