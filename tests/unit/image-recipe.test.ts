import { describe, expect, test } from "bun:test";
import { FlurryError } from "../../errors/errors.ts";
import { builtInRecipePath, loadRecipe, parseRecipe } from "../../guest-agent/image/recipe.ts";

function faultOf(text: string): { code: string; message: string } {
  try {
    parseRecipe(text, "r.jsonc", "/nowhere");
  } catch (error) {
    if (error instanceof FlurryError) return { code: error.code, message: error.message };
    throw error;
  }
  throw new Error("The recipe was accepted");
}

describe("parseRecipe()", () => {
  test("fills in the defaults and takes comments and trailing commas", () => {
    const { recipe } = parseRecipe('// a comment\n{ "name": "x", "packages": ["jq",], }', "r.jsonc", "/");
    expect(recipe).toEqual({
      name: "x",
      packages: ["jq"],
      kernel: { package: "linux-image-cloud-amd64" },
      keep: [],
      files: [],
      commands: [],
      env: {},
    });
  });

  test.each([
    ["an empty file", "", "r.jsonc:1:1: Value expected"],
    ["a missing comma", '{\n  "name": "x"\n  "packages": []\n}', "r.jsonc:3:3: Comma expected"],
    ["a missing brace", '{\n  "name": "x"\n', "r.jsonc:3:1: Close brace expected"],
    ["a missing name", '{ "packages": [] }', 'r.jsonc:1:1: "name" is missing'],
    ["an unknown key", '{\n  "name": "x",\n  "package": []\n}', 'r.jsonc:3:3: Unknown key "package"'],
    [
      "an unknown key in a file",
      '{\n  "name": "x",\n  "files": [\n    { "to": "/a", "content": "", "owner": 1 }\n  ]\n}',
      'r.jsonc:4:34: Unknown key "owner" in "files.0"',
    ],
    [
      "a wrong type",
      '{\n  "name": "x",\n  "packages": "jq"\n}',
      'r.jsonc:3:15: "packages" must be of type array',
    ],
    [
      "a wrong element",
      '{ "name": "x", "packages": [\n "jq",\n 7 ] }',
      'r.jsonc:3:2: "packages.1" must be of type string',
    ],
    [
      "a relative target",
      '{ "name": "x", "files": [{ "to": "a", "content": "" }] }',
      "must be an absolute path",
    ],
    [
      "a target with ..",
      '{ "name": "x", "files": [{ "to": "/a/../b", "content": "" }] }',
      'must not contain ".."',
    ],
    [
      "a file without source",
      '{ "name": "x", "files": [\n{ "to": "/a" }] }',
      'r.jsonc:2:1: "files.0" needs exactly one of',
    ],
    [
      "a bad mode",
      '{ "name": "x", "files": [{ "to": "/a", "content": "", "mode": "9" }] }',
      "permission bits in octal",
    ],
    [
      "a bad variable",
      '{ "name": "x", "env": { "A-B": "1" } }',
      "is not the name of an environment variable",
    ],
    ["an array", "[]", "r.jsonc:1:1: The recipe must be of type object"],
  ])("names line, column and reason of %s", (_what, text, expected) => {
    const fault = faultOf(text);
    expect(fault.code).toBe("RECIPE_INVALID");
    expect(fault.message).toStartWith("r.jsonc:");
    expect(fault.message).toContain(expected);
  });

  test.each([
    "jq; reboot",
    "jq,bash",
    "$(id)",
    "-o",
    "jq-",
    "./local.deb",
    "?essential",
    "jq jq",
    "JQ",
    "a\nb",
  ])("refuses %j as a package", (name) => {
    const fault = faultOf(JSON.stringify({ name: "x", packages: [name] }));
    expect(fault.code).toBe("RECIPE_INVALID");
    expect(fault.message).toContain("is not a package name");
  });

  test.each(["g++", "libstdc++6", "python3.11", "jq=1.6-2.1+deb12u1", "jq/bookworm-backports"])(
    "takes package %s",
    (name) => {
      expect(parseRecipe(JSON.stringify({ name: "x", packages: [name] }), "r", "/").recipe.packages).toEqual([
        name,
      ]);
    },
  );
});

describe("loadRecipe()", () => {
  test.each(["base", "povray", "python"])("knows the built-in recipe %s", async (name) => {
    const loaded = await loadRecipe(name);
    expect(loaded.recipe.name).toBe(name);
    expect(loaded.fault(["name"], "reason").message).toMatch(
      new RegExp(`^${builtInRecipePath(name)}:\\d+:\\d+: reason$`),
    );
  });

  test("rejects an unknown name with what to do", async () => {
    const error = await loadRecipe("no-such-image").catch((caught: unknown) => caught);
    expect(error).toBeInstanceOf(FlurryError);
    expect(error).toMatchObject({
      code: "IMAGE_NOT_FOUND",
      hint: expect.stringContaining("path of a recipe file"),
    });
  });

  test("rejects a file that is not there", async () => {
    const error = await loadRecipe("/nowhere/at-all.jsonc").catch((caught: unknown) => caught);
    expect(error).toMatchObject({
      code: "RECIPE_INVALID",
      message: expect.stringContaining("/nowhere/at-all.jsonc"),
    });
  });

  test("does not leave the directory of built-in recipes", async () => {
    const error = await loadRecipe("..").catch((caught: unknown) => caught);
    expect(error).toMatchObject({ code: "IMAGE_NOT_FOUND" });
  });
});
