import { readFile } from "node:fs/promises";
import {
  findNodeAtLocation,
  getNodeValue,
  type Node,
  type ParseError,
  parseTree,
  printParseErrorCode,
} from "jsonc-parser";
import type { z } from "zod";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/**
 * Reads a file of JSON with comments, checked by a schema. The value is given as it stands, without the
 * schema's defaults: whoever merges it with other values has to tell what was written.
 *
 * @returns undefined when there is no such file
 * @throws FlurryError BAD_ARGUMENT with file, line, column and the path of the value
 */
export async function readJsonc<T extends z.ZodType>(
  file: string,
  schema: T,
): Promise<z.input<T> | undefined> {
  let text: string;
  try {
    text = await readFile(file, "utf8");
  } catch (cause) {
    if (codeOf(cause) === "ENOENT") return undefined;
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("BAD_ARGUMENT", `Cannot read ${file}: ${reason}`, { cause });
  }
  return parseJsonc(text, schema, file);
}

/** The same of a text; `file` is its name in errors. @throws FlurryError BAD_ARGUMENT */
export function parseJsonc<T extends z.ZodType>(text: string, schema: T, file: string): z.input<T> {
  const errors: ParseError[] = [];
  const root = parseTree(text, errors, { allowTrailingComma: true });
  const [broken] = errors;
  if (broken) throw faultAt(text, broken.offset, file, words(printParseErrorCode(broken.error)));
  if (!root) throw faultAt(text, 0, file, "Value expected");
  const value = getNodeValue(root);
  const checked = schema.safeParse(value, { reportInput: true });
  if (checked.success) return value;
  const issue = checked.error.issues[0]!;
  const path = issue.path.filter((part) => typeof part !== "symbol");
  if (issue.code === "unrecognized_keys") {
    const unknown = [...path, issue.keys[0] ?? ""];
    throw faultAt(text, keyOffset(root, unknown), file, `${nameOf(unknown)} is unknown`);
  }
  if (issue.code === "invalid_key") {
    const reason = issue.issues[0]?.message ?? "is no valid key";
    throw faultAt(text, keyOffset(root, path), file, `The key ${nameOf(path)} ${reason}`);
  }
  throw faultAt(text, offsetOf(root, path), file, `${nameOf(path)} ${reasonOf(issue)}`);
}

function reasonOf(issue: z.core.$ZodIssue): string {
  if (issue.code === "invalid_type") {
    return issue.input === undefined ? "is missing" : `must be of type ${issue.expected}`;
  }
  // Zod's "Invalid option: expected" in the words of the other errors.
  const message = issue.message.replace(/^Invalid [^:.]+[:.] expected/i, "must be");
  return message.charAt(0).toLowerCase() + message.slice(1);
}

function nameOf(path: readonly (string | number)[]): string {
  return path.length === 0 ? "The file" : `"${path.join(".")}"`;
}

/** Of the value at `path`, or of the nearest one above that is there. */
function offsetOf(root: Node, path: (string | number)[]): number {
  for (let length = path.length; length > 0; length--) {
    const node = findNodeAtLocation(root, path.slice(0, length));
    if (node) return node.offset;
  }
  return root.offset;
}

function keyOffset(root: Node, path: (string | number)[]): number {
  return findNodeAtLocation(root, path)?.parent?.offset ?? offsetOf(root, path);
}

function faultAt(text: string, offset: number, file: string, reason: string): FlurryError {
  const before = text.slice(0, offset);
  const place = `${before.split("\n").length}:${offset - before.lastIndexOf("\n")}`;
  return new FlurryError("BAD_ARGUMENT", `${file}:${place}: ${reason}`);
}

/** "CommaExpected" → "Comma expected". */
function words(name: string): string {
  return name.replace(/(?<=[a-z])([A-Z])/g, (letter) => ` ${letter.toLowerCase()}`);
}
