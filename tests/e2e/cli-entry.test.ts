import { describe, expect, test } from "bun:test";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { readRequirements } from "../../runtime/requirements.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const { packageManager } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
const nobody = 65534;

/** A checkout of its own with a PATH of its own, where packages are missing as the test wants it. */
class Checkout implements Disposable {
  readonly path = mkdtempSync(join(tmpdir(), "flurry-entry-"));
  readonly bin = join(this.path, "bin");

  constructor() {
    chmodSync(this.path, 0o755);
    for (const directory of ["bin", "runtime", "node_modules", ".tools"])
      mkdirSync(join(this.path, directory));
    // The lock and the logs are written here, also by nobody.
    chmodSync(join(this.path, ".tools"), 0o777);
    for (const file of ["flurry", "package.json", "bun.lock", "runtime/requirements.txt"]) {
      copyFileSync(join(root, file), join(this.path, file));
    }
    writeFileSync(join(this.path, "node_modules/.flurry-installed"), "");
    const basics = ["sh", "cat", "flock", "id", "ln", "mkdir", "mv", "rm", "tail", "uname", "readlink"];
    for (const name of basics) this.link(name);
    this.program("bun", `echo "program: $*"`);
  }

  /** Puts one of the system's programs into PATH. */
  link(name: string): void {
    const path = spawnSync("sh", ["-c", 'command -v "$1"', "sh", name], { encoding: "utf8" }).stdout.trim();
    symlinkSync(path, join(this.bin, name));
  }

  /** Puts a shell script into PATH. */
  program(name: string, script: string): void {
    rmSync(join(this.bin, name), { force: true });
    writeFileSync(join(this.bin, name), `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  }

  start(args: string[], env: Record<string, string> = {}, uid = process.getuid?.()): ChildProcess {
    const options = uid === undefined ? {} : { uid };
    return spawn(join(this.path, "flurry"), args, {
      env: { PATH: this.bin, HOME: this.path, ...env },
      ...options,
    });
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true });
  }
}

async function ended(
  child: ChildProcess,
): Promise<{ status: number | null; stdout: string; stderr: string }> {
  let stdout = "";
  let stderr = "";
  child.stdout?.setEncoding("utf8").on("data", (text: string) => {
    stdout += text;
  });
  child.stderr?.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  return new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (status) => resolve({ status, stdout, stderr }));
  });
}

describe("./flurry with Debian packages missing", () => {
  const needed = readRequirements().filter((requirement) => requirement.who === "run");

  test("names all of them and stops with exit code 3 where there is no apt-get", async () => {
    using checkout = new Checkout();
    const { status, stdout, stderr } = await ended(
      checkout.start(["demo"], { FLURRY_BUN: join(checkout.bin, "bun") }),
    );
    expect(status).toBe(3);
    expect(stdout).toBe("");
    for (const requirement of needed) expect(stderr).toContain(requirement.package);
    expect(stderr).not.toContain("clang");
    expect(stderr).toEndWith("code: REQUIREMENT_MISSING\n");
  });

  test("asks for more packages where the tests are to be run", async () => {
    using checkout = new Checkout();
    const { status, stderr } = await ended(
      checkout.start(["test"], { FLURRY_BUN: join(checkout.bin, "bun") }),
    );
    expect(status).toBe(3);
    expect(stderr).toContain("clang");
  });

  test("without root prints the exact command", async () => {
    using checkout = new Checkout();
    checkout.program("apt-get", "echo apt-get was called; exit 1");
    // Root becomes nobody; anyone else is no root already.
    const uid = process.getuid?.() === 0 ? nobody : process.getuid?.();
    const env = { FLURRY_BUN: join(checkout.bin, "bun") };
    const { status, stdout, stderr } = await ended(
      checkout.start(["run", "--image", "x", "--", "true"], env, uid),
    );
    expect(status).toBe(3);
    expect(stdout).toBe("");
    const packages = readRequirements()
      .filter((requirement) => requirement.who !== "test")
      .map((requirement) => requirement.package);
    expect(stderr).toContain("Debian packages are missing");
    expect(stderr).toContain("\n  sudo apt-get update && sudo apt-get install --no-install-recommends ");
    for (const name of packages) expect(stderr).toContain(` ${name}`);
  });

  test.each([[["--help"]], [["doctor"]], [["demo", "--help"]], [["run", "-h"]], [[]]])(
    "does not ask for them for %j",
    async (args) => {
      using checkout = new Checkout();
      const { status, stdout } = await ended(checkout.start(args, { FLURRY_BUN: join(checkout.bin, "bun") }));
      expect(status).toBe(0);
      expect(stdout.trim()).toEndWith(["runtime/cli/main.ts", ...args].join(" "));
    },
  );

  test("takes --help after -- as an argument of the task", async () => {
    using checkout = new Checkout();
    const args = ["run", "--", "ls", "--help"];
    const { status } = await ended(checkout.start(args, { FLURRY_BUN: join(checkout.bin, "bun") }));
    expect(status).toBe(3);
  });
});

describe("./flurry without Bun", () => {
  /** An npm that makes the directory of the package, and writes down that it was called. */
  const npm = `
    echo "$@" >> "$HOME/calls"
    shift
    for last; do :; done
    package=\${last%@*}
    mkdir -p "$2/node_modules/$package/bin"
    cat "$HOME/bin/bun" > "$2/node_modules/$package/bin/bun"
    chmod +x "$2/node_modules/$package/bin/bun"`;

  test("two first runs at the same time install it once, in the pinned version", async () => {
    using checkout = new Checkout();
    checkout.link("chmod");
    checkout.program("npm", npm);
    const runs = await Promise.all([1, 2, 3].map(() => ended(checkout.start(["--version"]))));
    for (const { status, stdout, stderr } of runs) {
      expect(stderr.replace(/^flurry: installing Bun [\d.]+\n$/, "")).toBe("");
      expect(status).toBe(0);
      expect(stdout).toContain("runtime/cli/main.ts --version");
    }
    const calls = readFileSync(join(checkout.path, "calls"), "utf8").trim().split("\n");
    expect(calls.length).toBe(1);
    const version = packageManager.replace("bun@", "");
    expect(calls[0]).toMatch(new RegExp(` @oven/bun-linux-[a-z0-9]+@${version}$`));
    expect(calls[0]).toContain("--ignore-scripts");
  });

  test("says so and shows npm's output when it cannot be installed", async () => {
    using checkout = new Checkout();
    checkout.program("npm", "echo no such registry >&2; exit 1");
    const { status, stderr } = await ended(checkout.start(["--version"]));
    expect(status).toBe(3);
    expect(stderr).toContain("no such registry");
    expect(stderr).toContain("code: REQUIREMENT_MISSING");
  });

  test("says so where there is no npm", async () => {
    using checkout = new Checkout();
    const { status, stderr } = await ended(checkout.start(["--version"]));
    expect(status).toBe(3);
    expect(stderr).toContain("npm is missing");
  });

  test("installs the node packages again when bun.lock has changed", async () => {
    using checkout = new Checkout();
    rmSync(join(checkout.path, "node_modules/.flurry-installed"));
    checkout.program("bun", `echo "bun $*" >> "$HOME/calls"`);
    const env = { FLURRY_BUN: join(checkout.bin, "bun") };
    await ended(checkout.start(["doctor"], env));
    await ended(checkout.start(["doctor"], env));
    const calls = readFileSync(join(checkout.path, "calls"), "utf8").trim().split("\n");
    expect(calls.filter((call) => call === "bun install --frozen-lockfile").length).toBe(1);
    expect(calls.length).toBe(3);
  });
});

test("./flurry may be called through a symbolic link and from anywhere", async () => {
  using checkout = new Checkout();
  const link = join(checkout.bin, "flurry");
  symlinkSync(join(checkout.path, "flurry"), link);
  const env = { PATH: checkout.bin, FLURRY_BUN: join(checkout.bin, "bun") };
  const { status, stdout } = await ended(spawn("flurry", ["doctor"], { env, cwd: "/" }));
  expect(status).toBe(0);
  expect(stdout).toContain(join(checkout.path, "runtime/cli/main.ts"));
});
