/**
 * The command that runs a program of this project on the runtime that this is.
 *
 * @param path - of its TypeScript
 */
export function programArgv(path: string, args: readonly string[] = []): string[] {
  const options =
    process.versions.bun === undefined ? ["run", "--quiet", "--allow-all", "--no-check"] : ["--no-env-file"];
  return [process.execPath, ...options, path, ...args];
}
