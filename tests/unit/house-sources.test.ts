import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { errorCodes } from "../../errors/codes.ts";
import { readRequirements } from "../../runtime/requirements.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
const tracked = listTracked();
const product = tracked.filter((file) => file.endsWith(".ts") && !/^(tests|bench|examples)\//.test(file));

describe("sources", () => {
  test("name a runtime only in runtime/adapters, so that they run on both", () => {
    const allowed = /^(runtime\/adapters\/|guest-agent\/(?:worker-host|bindings)\/)/;
    const offenders = product
      .filter((file) => !allowed.test(file))
      .filter((file) => /\b(?:Bun|Deno)\.\w|from "(?:bun|bun:\w+)"/.test(codeOf(read(file))));
    expect(offenders).toEqual([]);
  });

  test("import with the ending of the file", () => {
    const offenders = tracked
      .filter((file) => file.endsWith(".ts"))
      .filter((file) => /from "\.{1,2}\/[^"]*(?<!\.(?:ts|json|tsx))"/.test(codeOf(read(file))));
    expect(offenders).toEqual([]);
  });

  test("raise no code that errors/codes.ts does not know, nor CALLS.md for programs in the guest", () => {
    const calls = read("guest-agent/protocol/CALLS.md");
    const unknown = product.flatMap((file) =>
      [...codeOf(read(file)).matchAll(/new (\w*Error)\(\s*"([A-Z]+(?:_[A-Z]+)+)"/g)]
        .filter(([, kind, code]) => {
          const isOfCall = kind === "CallError" || file.startsWith("guest-agent/bindings/");
          return isOfCall ? !calls.includes(`\`${code}\``) : !Object.hasOwn(errorCodes, code!);
        })
        .map(([, , code]) => `${file}: ${code}`),
    );
    expect(unknown).toEqual([]);
  });

  test("hold no unfinished work", () => {
    const word = new RegExp(["TO", "DO|FIX", "ME|X", "XX"].join(""));
    const offenders = tracked
      .filter((file) => /\.(ts|c|h|sh|cjs)$/.test(file))
      .filter((file) => new RegExp(`\\b(?:${word.source})\\b`).test(read(file)))
      .filter((file) => !file.endsWith(".generated.ts") && !file.startsWith("tests/"));
    expect(offenders).toEqual([]);
  });
});

describe("the entry", () => {
  test("pins Bun to the version whose types are checked against", () => {
    const manifest = JSON.parse(read("package.json"));
    expect(manifest.packageManager).toBe(`bun@${manifest.devDependencies["@types/bun"]}`);
  });

  test("pins every dependency to one version", () => {
    const manifest = JSON.parse(read("package.json"));
    const versions = Object.values({ ...manifest.dependencies, ...manifest.devDependencies });
    for (const version of versions) expect(version).toMatch(/^\d+\.\d+\.\d+$/);
  });

  test("finds the sets of packages that it asks for in the table", () => {
    const script = read("flurry");
    for (const who of new Set(readRequirements().map((requirement) => requirement.who))) {
      expect(script).toContain(`${who})`);
    }
  });

  test("./flurry and .ci/run may be executed, and continuous integration runs the README's test command", () => {
    const modes = gitOutput(["ls-files", "--stage", "flurry", ".ci/run"]).trim().split("\n");
    expect(modes.map((line) => line.split(" ")[0])).toEqual(["100755", "100755"]);
    expect(read(".ci/run")).toContain("./flurry test");
    expect(read("README.md")).toContain("./flurry test");
  });
});

test("README.md and docs/ link to nothing that is not there", () => {
  const broken = tracked
    .filter((file) => file.endsWith(".md"))
    .flatMap((file) =>
      [...read(file).matchAll(/\]\((?!https?:|#|mailto:)([^)#\s]+)/g)]
        .map((match) => join(file, "..", match[1]!))
        .filter((target) => !existsSync(join(root, target)))
        .map((target) => `${file}: ${target}`),
    );
  expect(broken).toEqual([]);
});

/** The text without its comments: they may speak of what the code must not use. */
function codeOf(source: string): string {
  return source.replace(/\/\*[\s\S]*?\*\//g, "").replace(/(^|\s)\/\/.*$/gm, "$1");
}

function read(file: string): string {
  return readFileSync(join(root, file), "utf8");
}

function listTracked(): string[] {
  return gitOutput(["ls-files"])
    .trim()
    .split("\n")
    .filter((file) => existsSync(join(root, file)));
}

function gitOutput(args: string[]): string {
  const { status, stdout, stderr } = spawnSync("git", ["-c", "safe.directory=*", ...args], {
    cwd: root,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`Cannot list the project's files: ${stderr}`);
  return stdout;
}
