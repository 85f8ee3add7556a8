import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { commandsInUse } from "../../qmp/commands-in-use.ts";
import { compatibilityProblems } from "../../qmp/compatibility.ts";
import { generatedFiles, readSchema } from "../../qmp/generate.ts";
import { generatedSchema } from "../../qmp/schema-in-use.generated.ts";
import { qemuBinary } from "../support/qmp-qemu.ts";

describe("the generated QMP types", () => {
  test("hold for the installed QEMU", async () => {
    const installed = await readSchema(qemuBinary);
    expect(compatibilityProblems(generatedSchema, installed, commandsInUse)).toEqual([]);
    // Another version's types differ in what nobody uses; those of the same version must not.
    if (installed.version === generatedSchema.version) {
      for (const [name, text] of Object.entries(generatedFiles(installed))) {
        expect(text).toBe(readFileSync(new URL(`../../qmp/${name}`, import.meta.url), "utf8"));
      }
    }
  });

  test("readSchema() says why when the program is no QEMU or is missing", async () => {
    await expect(readSchema("false")).rejects.toThrow('"false" ended before it spoke QMP');
    await expect(readSchema("/nonexistent/qemu")).rejects.toThrow("ENOENT");
  });
});
