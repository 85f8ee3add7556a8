import { workerLimits } from "./constants.ts";
import { WorkerError } from "./errors.ts";
import { type HeaderList, headersProblem, isToken } from "./headers.ts";

/** @throws WorkerError BAD_ARGUMENT for what no worker could be asked */
export function checkRequest(method: string, url: string, headers: HeaderList): void {
  const problem =
    !isToken(method) || method.length > workerLimits.METHOD_MAX
      ? `the method ${JSON.stringify(method.slice(0, 40))}`
      : url.length > workerLimits.URL_MAX
        ? `a URL of ${url.length} characters, at most ${workerLimits.URL_MAX} are allowed`
        : !URL.canParse(url)
          ? `the URL ${JSON.stringify(url.slice(0, 200))}`
          : headersProblem(headers);
  if (problem) throw new WorkerError("BAD_ARGUMENT", `Cannot send a request with ${problem}`);
}

/** @throws WorkerError BAD_ARGUMENT for what no environment holds */
export function checkVariables(variables: Record<string, string>): void {
  const names = Object.keys(variables);
  const bad = names.find((name) => name === "" || /[=\0]/.test(name) || variables[name]?.includes("\0"));
  const problem =
    names.length > workerLimits.VARIABLES_MAX
      ? `${names.length} variables, at most ${workerLimits.VARIABLES_MAX} are allowed`
      : bad === undefined
        ? undefined
        : `the variable ${JSON.stringify(bad.slice(0, 80))}: its name or its value cannot be in an environment`;
  if (problem) throw new WorkerError("BAD_ARGUMENT", `Cannot give a child ${problem}`);
}

/** A task's input as JSON. @throws WorkerError BAD_ARGUMENT if it is none, or too large */
export function jsonBytes(input: unknown): Uint8Array {
  let text: string | undefined;
  try {
    text = JSON.stringify(input ?? null);
  } catch (error) {
    throw new WorkerError("BAD_ARGUMENT", "Cannot write the task's input as JSON", { cause: error });
  }
  if (text === undefined) throw new WorkerError("BAD_ARGUMENT", "Cannot write the task's input as JSON");
  const bytes = new TextEncoder().encode(text);
  if (bytes.length <= workerLimits.TASK_MAX) return bytes;
  const size = `it takes ${bytes.length} bytes, at most ${workerLimits.TASK_MAX} are allowed`;
  throw new WorkerError("BAD_ARGUMENT", `Cannot send the task's input: ${size}`);
}
