import { readFile } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import * as jsonc from "jsonc-parser";
import { type Node, type ParseError, parseTree, printParseErrorCode } from "jsonc-parser";
import { z } from "zod";
import { FlurryError } from "../../errors/errors.ts";

const packagePattern = /^[a-z0-9][a-z0-9+.-]*[a-z0-9+](?:=[A-Za-z0-9.+~:-]+|\/[a-z0-9][a-z0-9.-]*)?$/;
const absolutePath = z
  .string()
  .regex(/^\/[^\0\n]*$/, "must be an absolute path")
  .refine((path) => !path.split("/").includes(".."), 'must not contain ".."');

const fileSchema = z
  .strictObject({
    /** Absolute path in the image; missing directories are made with mode 0755. */
    to: absolutePath,
    /** File or directory to copy, relative to the recipe's directory. */
    from: z.string().min(1).optional(),
    /** The file's text, instead of `from`. */
    content: z.string().optional(),
    /** Permission bits in octal. Default: those of `from` for the owner, else "0644". */
    mode: z
      .string()
      .regex(/^0?[0-7]{3}$/, 'must be permission bits in octal, such as "0755"')
      .optional(),
  })
  .refine((file) => (file.from === undefined) !== (file.content === undefined), {
    message: 'needs exactly one of "from" and "content"',
  });

const recipeSchema = z.strictObject({
  /** Name of the image: lower-case letters, digits, dot, dash, underscore. */
  name: z
    .string()
    .regex(/^[a-z0-9][a-z0-9._-]{0,62}$/, "must be lower-case letters, digits, dots, dashes or underscores"),
  description: z.string().optional(),
  /** Debian release by code name. Default: the host's. */
  suite: z
    .string()
    .regex(/^[a-z]+$/, "must be a Debian code name such as trixie")
    .optional(),
  kernel: z
    .strictObject({
      /** Kernel package, or the meta package that depends on it. */
      package: z
        .string()
        .regex(/^linux-image-[a-z0-9+.~-]+$/, "must be a linux-image package")
        .default("linux-image-cloud-amd64"),
      /** Release to take it from, such as bookworm-backports. Default: see docs/images.md. */
      suite: z
        .string()
        .regex(/^[a-z]+(-[a-z]+)*$/, "must be the name of a Debian release")
        .optional(),
    })
    .default({ package: "linux-image-cloud-amd64" }),
  /** Debian packages beside the essential ones: NAME, NAME=VERSION or NAME/RELEASE. */
  packages: z.array(z.string().regex(packagePattern, "is not a package name")).default([]),
  /** Paths or patterns (dpkg's path-include) to keep although documentation and translations are dropped. */
  keep: z.array(absolutePath).default([]),
  files: z.array(fileSchema).default([]),
  /** Shell commands run in the image, in order, as root, with `sh -e`. */
  commands: z
    .array(
      z
        .string()
        .min(1)
        .regex(/^[^\0]*$/, "must not contain a NUL"),
    )
    .default([]),
  /** Environment of `commands` and, by default, of every program started in the VM. */
  env: z
    .record(
      z.string().regex(/^[A-Za-z_][A-Za-z0-9_]*$/, "is not the name of an environment variable"),
      z.string().regex(/^[^\0]*$/, "must not contain a NUL"),
    )
    .default({}),
  /** Upper bound of every file time, in seconds since 1970. Default: the time of the newest package. */
  sourceDateEpoch: z.number().int().min(0).max(4_294_967_295).optional(),
});

/** What may be written in a recipe file. */
export type RecipeInput = z.input<typeof recipeSchema>;
/** A checked recipe with its defaults filled in. */
export type Recipe = z.output<typeof recipeSchema>;

export type RecipePath = (string | number)[];

/** A checked recipe and where it came from. */
export interface LoadedRecipe {
  recipe: Recipe;
  /** Directory that `files[].from` is relative to. */
  directory: string;
  /** An error with code RECIPE_INVALID that names file, line and column of the value at `path`. */
  fault(path: RecipePath, reason: string, options?: { cause?: unknown; hint?: string }): FlurryError;
}

const builtInDirectory = join(import.meta.dirname, "recipes");

/** Path of a built-in recipe file (it need not exist). */
export function builtInRecipePath(name: string): string {
  return join(builtInDirectory, `${name}.jsonc`);
}

/** Whether the argument of `image build` is a file rather than the name of a built-in recipe. */
function looksLikePath(nameOrPath: string): boolean {
  return nameOrPath.includes("/") || /\.jsonc?$/.test(nameOrPath);
}

/**
 * Loads a recipe: an object, the path of a JSONC file, or the name of a built-in recipe.
 *
 * @throws FlurryError RECIPE_INVALID with file, line, column and reason; IMAGE_NOT_FOUND for an unknown name
 */
export async function loadRecipe(source: RecipeInput | string): Promise<LoadedRecipe> {
  if (typeof source !== "string") return checkRecipe(source, undefined, "recipe", process.cwd());
  const isPath = looksLikePath(source);
  const path = isPath ? resolve(source) : builtInRecipePath(basename(source));
  const text = await readRecipeFile(path, isPath ? source : undefined, source);
  return parseRecipe(text, isPath ? source : path, dirname(path));
}

/** Parses and checks the text of a recipe file; `label` is the file's name in error messages. */
export function parseRecipe(text: string, label: string, directory: string): LoadedRecipe {
  const errors: ParseError[] = [];
  const root = parseTree(text, errors, { allowTrailingComma: true });
  const first = errors[0];
  if (first !== undefined) {
    const reason = sentence(printParseErrorCode(first.error));
    throw invalid(`${label}:${position(text, first.offset)}`, reason);
  }
  if (root === undefined) throw invalid(`${label}:1:1`, "Value expected");
  return checkRecipe(jsonc.getNodeValue(root), { text, root }, label, directory);
}

async function readRecipeFile(path: string, label: string | undefined, asked: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT" && label === undefined) {
      throw new FlurryError("IMAGE_NOT_FOUND", `No built-in recipe is named "${asked}"`, {
        cause,
        hint: "Give the path of a recipe file, such as ./my-image.jsonc",
      });
    }
    throw new FlurryError("RECIPE_INVALID", `Cannot read recipe "${asked}": ${(cause as Error).message}`, {
      cause,
    });
  }
}

function checkRecipe(
  value: unknown,
  source: { text: string; root: Node } | undefined,
  label: string,
  directory: string,
): LoadedRecipe {
  function where(path: RecipePath, find = offsetOf): string {
    return source === undefined ? label : `${label}:${position(source.text, find(source.root, path))}`;
  }
  const checked = recipeSchema.safeParse(value, { reportInput: true });
  if (checked.success) {
    return {
      recipe: checked.data,
      directory,
      fault: (path, reason, options) => invalid(where(path), reason, options),
    };
  }
  const issue = checked.error.issues[0];
  if (issue === undefined) throw invalid(where([]), "Invalid recipe");
  const path = issue.path.filter((part) => typeof part !== "symbol");
  const subject = path.length === 0 ? "The recipe" : `"${path.join(".")}"`;
  if (issue.code === "unrecognized_keys") {
    const key = issue.keys[0] ?? "";
    const within = path.length === 0 ? "" : ` in ${subject}`;
    throw invalid(where([...path, key], offsetOfKey), `Unknown key "${key}"${within}`);
  }
  if (issue.code === "invalid_key") {
    throw invalid(where(path, offsetOfKey), `${subject} ${issue.issues[0]?.message ?? "is not a valid key"}`);
  }
  if (issue.code === "invalid_type") {
    const missing = issue.input === undefined;
    throw invalid(where(path), `${subject} ${missing ? "is missing" : `must be of type ${issue.expected}`}`);
  }
  const shown = issue.code === "invalid_format" ? `: ${JSON.stringify(issue.input)}` : "";
  throw invalid(where(path), `${subject}${shown} ${lowerFirst(issue.message)}`);
}

function invalid(
  where: string,
  reason: string,
  options: { cause?: unknown; hint?: string } = {},
): FlurryError {
  return new FlurryError("RECIPE_INVALID", `${where}: ${reason}`, options);
}

/** Offset of the value at `path`, or of the nearest thing that exists above it. */
function offsetOf(root: Node, path: RecipePath): number {
  for (let length = path.length; length > 0; length--) {
    const node = jsonc.findNodeAtLocation(root, path.slice(0, length));
    if (node !== undefined) return node.offset;
  }
  return root.offset;
}

function offsetOfKey(root: Node, path: RecipePath): number {
  return jsonc.findNodeAtLocation(root, path)?.parent?.offset ?? offsetOf(root, path);
}

function position(text: string, offset: number): string {
  const before = text.slice(0, offset);
  const line = before.split("\n").length;
  return `${line}:${offset - before.lastIndexOf("\n")}`;
}

/** "CommaExpected" → "Comma expected". */
function sentence(name: string): string {
  return name.replace(/(?<=[a-z])([A-Z])/g, (letter) => ` ${letter.toLowerCase()}`);
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
