import { describe, expect, test } from "bun:test";
import { spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../..", import.meta.url));
const main = fileURLToPath(new URL("../../runtime/cli/main.ts", import.meta.url));
const deno = fileURLToPath(new URL("../../node_modules/deno/bin.cjs", import.meta.url));

/** The same program on each runtime. */
const runtimes = [
  ["bun", [process.execPath, main]],
  ["deno", [process.execPath, "--bun", deno, "run", "--allow-all", main]],
] as const;

describe.each(runtimes)("the command line on %s", (_name, command) => {
  const flurry = (...args: string[]) => {
    const [program, ...rest] = command;
    const env = { ...process.env, NO_COLOR: "1" };
    return spawnSync(program, [...rest, ...args], { cwd: root, encoding: "utf8", env });
  };

  test("lists every command in its help", () => {
    const { status, stdout } = flurry("--help");
    expect(status).toBe(0);
    for (const name of [
      "demo",
      "run",
      "dev",
      "deploy",
      "serve",
      "job",
      "worker",
      "secret",
      "key",
      "image",
      "bench",
      "doctor",
      "test",
    ]) {
      expect(stdout).toMatch(new RegExp(`^ {2}${name} +\\w`, "m"));
    }
    expect(flurry().stdout).toBe(stdout);
  });

  test("shows a command's own help, which names its options", () => {
    const { status, stdout } = flurry("test", "--help");
    expect(status).toBe(0);
    expect(stdout).toContain("--layer <name>");
    expect(flurry("help", "test").stdout).toBe(stdout);
  });

  test("refuses an unknown command with exit code 2 and says which", () => {
    const { status, stdout, stderr } = flurry("rnu");
    expect(status).toBe(2);
    expect(stdout).toBe("");
    expect(stderr).toBe('flurry: Unknown command "rnu"\n  code: BAD_ARGUMENT\n');
  });

  test("refuses unknown options and wrong values with exit code 2", () => {
    expect(flurry("--nope").status).toBe(2);
    expect(flurry("doctor", "--nope").status).toBe(2);
    const wrong = flurry("test", "--layer", "unit,nope");
    expect(wrong.status).toBe(2);
    expect(wrong.stderr).toContain("Layers are lint, unit");
    expect(wrong.stderr).toContain("code: BAD_ARGUMENT");
  });

  test("with --json an error is one JSON line on stdout", () => {
    const { status, stdout, stderr } = flurry("doctor", "--json", "--nope");
    expect(status).toBe(2);
    expect(stderr).toBe("");
    expect(stdout.trimEnd().split("\n").length).toBe(1);
    expect(JSON.parse(stdout)).toMatchObject({ event: "error", code: "BAD_ARGUMENT" });
  });

  test("doctor --json reports each requirement and ends with a summary that its exit code agrees with", () => {
    const { status, stdout } = flurry("doctor", "--json");
    const events = stdout
      .trimEnd()
      .split("\n")
      .map((line) => JSON.parse(line));
    const summary = events.pop();
    expect(summary.event).toBe("summary");
    expect(status).toBe(summary.ready ? 0 : 3);
    const names = events.map((event) => event.name);
    for (const name of ["bun", "qemu", "mmdebstrap", "kvm", "memory", "shared memory", "data directory"]) {
      expect(names).toContain(name);
    }
    for (const event of events) expect(["ok", "missing", "degraded", "info"]).toContain(event.status);
    expect(summary.missing).toEqual(events.filter((e) => e.status === "missing").map((e) => e.name));
  });

  test("doctor says what is missing and what to do", () => {
    const [program, ...rest] = command;
    // Absolute paths start the runtimes; nothing else is in PATH.
    const env = { ...process.env, PATH: "/nonexistent", FLURRY_QEMU: "", NO_COLOR: "1" };
    const { status, stdout } = spawnSync(program, [...rest, "doctor"], { cwd: root, encoding: "utf8", env });
    expect(status).toBe(3);
    expect(stdout).toMatch(/✗ qemu .*qemu-system-x86_64/);
    expect(stdout).toMatch(/→ .*apt-get install .*qemu-system-x86/);
    expect(stdout).toMatch(/^Missing: qemu, /m);
  });

  test("does not complain when the reader of its output goes away", async () => {
    const [program, ...rest] = command;
    const child = spawn(program, [...rest, "--help"], { cwd: root, stdio: ["ignore", "pipe", "pipe"] });
    child.stdout.destroy();
    const errors: Buffer[] = [];
    child.stderr.on("data", (chunk: Buffer) => errors.push(chunk));
    const [exitCode, signal] = await once(child, "close");
    expect(signal).toBeNull();
    expect(exitCode).toBe(0);
    expect(Buffer.concat(errors).toString()).toBe("");
  });
});

describe("listenForSignals()", () => {
  const script = `
    import { cliSignal, listenForSignals } from ${JSON.stringify(`${root}runtime/cli/signal.ts`)};
    listenForSignals();
    cliSignal().addEventListener("abort", () => console.log("aborted", cliSignal().reason.code));
    console.log("ready");
    setInterval(() => undefined, 1000);`;

  test("aborts the command at the first signal and ends the process at the second", async () => {
    const child = spawn(process.execPath, ["-e", script], { stdio: ["ignore", "pipe", "inherit"] });
    const said: string[] = [];
    const ended = once(child, "exit");
    for await (const chunk of child.stdout.setEncoding("utf8")) {
      said.push(chunk);
      // Each line answers the step before it.
      child.kill("SIGINT");
    }
    expect(said.join("")).toBe("ready\naborted ABORTED\n");
    expect((await ended)[0]).toBe(130);
  });
});
