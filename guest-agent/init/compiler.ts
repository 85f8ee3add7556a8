import { execFile } from "node:child_process";
import { stat } from "node:fs/promises";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { FlurryError } from "../../errors/errors.ts";

const run = promisify(execFile);
const SANITIZER_PACKAGES = "apt-get install clang libclang-rt-14-dev";

function isStatic(variant: string): boolean {
  return variant === "release" || variant === "sabotage";
}

/** musl first: its static programs are an eighth of glibc's, and every page counts in a fresh child. */
export async function findCompiler(variant: string): Promise<string> {
  const wanted = isStatic(variant) ? ["musl-gcc", "gcc", "cc"] : ["clang"];
  for (const name of wanted) {
    for (const dir of (process.env.PATH ?? "").split(delimiter)) {
      if (dir !== "" && (await exists(join(dir, name)))) return join(dir, name);
    }
  }
  throw new FlurryError(
    "REQUIREMENT_MISSING",
    `Cannot build the guest agent: none of ${wanted.join(", ")} is in PATH`,
    {
      hint: isStatic(variant) ? "apt-get install musl-tools" : SANITIZER_PACKAGES,
    },
  );
}

export async function compilerVersion(compiler: string, signal: AbortSignal | undefined): Promise<string> {
  const { stdout } = await tool(compiler, ["--version"], ".", signal);
  return stdout;
}

/**
 * Runs a tool of the build.
 *
 * @throws FlurryError REQUIREMENT_MISSING, INTERNAL with what it has said, ABORTED
 */
export async function tool(
  program: string,
  args: string[],
  cwd: string,
  signal: AbortSignal | undefined,
): Promise<{ stdout: string }> {
  try {
    return await run(program, args, { cwd, maxBuffer: 16 << 20, ...(signal ? { signal } : {}) });
  } catch (error) {
    if (signal?.aborted)
      throw new FlurryError("ABORTED", "The build of what runs in guests was aborted", { cause: error });
    const output = error instanceof Error && "stderr" in error ? String(error.stderr).trim() : String(error);
    if (output.includes("libclang_rt")) {
      const message = `Cannot build the guest agent: the sanitizer libraries of ${program} are missing`;
      throw new FlurryError("REQUIREMENT_MISSING", message, { cause: error, hint: SANITIZER_PACKAGES });
    }
    throw new FlurryError("INTERNAL", `Cannot build what runs in guests with ${program}: ${output}`, {
      cause: error,
    });
  }
}

export async function exists(path: string): Promise<boolean> {
  return stat(path).then(
    () => true,
    () => false,
  );
}
