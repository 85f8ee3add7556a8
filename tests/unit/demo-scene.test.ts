import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { requireWritable } from "../../runtime/cli/demo-out.ts";
import { exampleScene, filesOf, findScene, povray, povrayError } from "../../runtime/cli/demo-scene.ts";

let directory: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "flurry-demo-test-"));
});

afterAll(() => {
  rmSync(directory, { recursive: true });
});

describe("findScene()", () => {
  test("takes a file's content into the guest", async () => {
    const path = join(directory, "mine.pov");
    writeFileSync(path, "sphere {}");
    const scene = await findScene(path);
    expect(filesOf(scene)).toEqual([{ path: "/tmp/scene.pov", data: Buffer.from("sphere {}") }]);
  });

  test("takes a name that is no file for one of the examples", async () => {
    const scene = await findScene("advanced/chess2.pov");
    expect(scene).toEqual({ path: "/usr/share/doc/povray/examples/advanced/chess2.pov" });
    expect(filesOf(scene)).toEqual([]);
  });

  test.each(["/nowhere.pov", "../nowhere.pov", "advanced/../../nowhere.pov"])(
    "refuses %s, which can be no example",
    async (name) => {
      await expect(findScene(name)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
    },
  );

  test("refuses a directory", async () => {
    await expect(findScene(directory)).rejects.toMatchObject({ code: "BAD_ARGUMENT" });
  });
});

describe("povray()", () => {
  const scene = exampleScene("advanced/woodbox.pov");
  const size = { width: 320, height: 240 };

  test("counts a tile's pixels from 1, both ends included", () => {
    const argv = povray(scene, size, { x: 80, y: 0, width: 40, height: 120 }, "/out/tile.png");
    for (const argument of ["+SC81", "+EC120", "+SR1", "+ER120", "+W320", "+H240"]) {
      expect(argv).toContain(argument);
    }
    expect(argv).toContain("+L/usr/share/doc/povray/examples/advanced");
  });

  test("names no region for the whole picture", () => {
    const argv = povray(scene, size, undefined, "/out/all.png");
    expect(argv.filter((argument) => /^\+[SE][CR]\d/.test(argument))).toEqual([]);
  });
});

test("povrayError() leaves out titles, authors and what is said at each failure", () => {
  const stderr = [
    "Persistence of Vision(tm) Ray Tracer",
    "==== [Parsing...] ==========================================================",
    "File 'scene.pov' line 1: Parse Error: No matching }",
    "Fatal error in parser: Cannot parse input.",
    "Render failed",
    "",
  ].join("\n");
  const message =
    "File 'scene.pov' line 1: Parse Error: No matching }\nFatal error in parser: Cannot parse input.";
  expect(povrayError(stderr)).toBe(message);
  expect(povrayError("povray: not found\n")).toBe("povray: not found");
});

describe("requireWritable()", () => {
  test("takes a new file and one that is there", () => {
    const there = join(directory, "there.png");
    writeFileSync(there, "");
    expect(requireWritable(there)).toBe(there);
    expect(requireWritable(join(directory, "new.png"))).toBe(join(directory, "new.png"));
  });

  test("refuses what cannot become a file", () => {
    writeFileSync(join(directory, "file"), "");
    for (const path of [
      directory,
      `${directory}/no/file.png`,
      `${directory}/file/x.png`,
      `${directory}/new/`,
    ]) {
      expect(() => requireWritable(path)).toThrow(`Cannot write "${path}": `);
    }
  });
});
