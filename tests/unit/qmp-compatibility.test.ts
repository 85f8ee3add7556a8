import { describe, expect, test } from "bun:test";
import type { CommandUse } from "../../qmp/commands-in-use.ts";
import { compatibilityProblems } from "../../qmp/compatibility.ts";
import { type SchemaInUse, schemaInUse } from "../../qmp/schema.ts";
import { renderTypes } from "../../qmp/schema-render.ts";

const USES: Record<string, CommandUse> = {
  save: { arguments: ["file", "mode", "list"], always: ["file"], oob: true },
};

/** A small schema as QEMU would answer it, with some entries replaced. */
function schemaWith(changes: Record<string, unknown> = {}): SchemaInUse {
  const entries: Record<string, unknown> = {
    str: { "meta-type": "builtin", "json-type": "string" },
    int: { "meta-type": "builtin", "json-type": "int" },
    "0": { "meta-type": "object", members: [] },
    save: { "meta-type": "command", "arg-type": "1", "ret-type": "2", "allow-oob": true },
    "1": {
      "meta-type": "object",
      members: [
        { name: "file", type: "str", default: null },
        { name: "mode", type: "3", default: null },
        { name: "list", type: "[4]", default: null },
        { name: "unused", type: "int", default: null },
      ],
    },
    "2": {
      "meta-type": "object",
      members: [
        { name: "size", type: "int" },
        { name: "note", type: "str", default: null },
      ],
    },
    "3": { "meta-type": "enum", values: ["fast", "small"] },
    "[4]": { "meta-type": "array", "element-type": "4" },
    "4": {
      "meta-type": "object",
      members: [
        { name: "kind", type: "5" },
        { name: "id", type: "int" },
      ],
      tag: "kind",
      variants: [
        { case: "disk", type: "6" },
        { case: "none", type: "0" },
      ],
    },
    "5": { "meta-type": "enum", values: ["none", "disk", "nothing"] },
    "6": { "meta-type": "object", members: [{ name: "disk-path", type: "str" }] },
    DONE: { "meta-type": "event", "arg-type": "2" },
    ...changes,
  };
  const list = Object.entries(entries)
    .filter(([, entry]) => entry !== undefined)
    .map(([name, entry]) => ({ name, ...(entry as object) }));
  return schemaInUse("1.2.3", list, USES, ["DONE"]);
}

function members(...list: unknown[]): unknown {
  return { "meta-type": "object", members: list };
}

describe("compatibilityProblems()", () => {
  test("finds none in the same schema, nor in one that lacks only what is not used", () => {
    const ours = schemaWith();
    expect(compatibilityProblems(ours, schemaWith(), USES)).toEqual([]);
    const older = schemaWith({
      "1": members(
        { name: "file", type: "str" },
        { name: "mode", type: "3", default: null },
        { name: "list", type: "[4]", default: null },
      ),
      "2": members({ name: "size", type: "int" }, { name: "more", type: "str" }),
      "3": { "meta-type": "enum", values: ["fast"] },
    });
    expect(compatibilityProblems(ours, older, USES)).toEqual([]);
  });

  const file = { name: "file", type: "str", default: null };
  const mode = { name: "mode", type: "3", default: null };
  const list = { name: "list", type: "[4]", default: null };

  test.each<[string, Record<string, unknown>, string]>([
    ["a missing command", { save: undefined }, 'QEMU 1.2.3 lacks command "save"'],
    ["a missing event", { DONE: undefined }, 'QEMU 1.2.3 lacks event "DONE"'],
    ["a missing argument", { "1": members(file, list) }, 'QEMU takes no argument "save.mode"'],
    [
      "another type",
      { "1": members({ ...file, type: "int" }, mode, list) },
      '"save.file" is int, not string',
    ],
    [
      "another kind",
      { "1": members({ ...file, type: "3" }, mode, list) },
      '"save.file" is enum, not builtin',
    ],
    [
      "a required argument that we leave out",
      { "1": members(file, { name: "mode", type: "3" }, list) },
      '"save.mode" is required',
    ],
    [
      "a required argument that we do not know",
      { "1": members(file, mode, list, { name: "new", type: "int" }) },
      '"save" requires "new"',
    ],
    [
      "a new required member deep in an argument",
      { "4": members({ name: "kind", type: "5" }, { name: "id", type: "int" }, { name: "x", type: "int" }) },
      '"save.list[].x" is required',
    ],
    [
      "an enumeration with nothing in common",
      { "3": { "meta-type": "enum", values: ["other"] } },
      '"save.mode" shares no value',
    ],
    [
      "an answer that went",
      {
        "2": members({ name: "note", type: "str", default: null }),
        DONE: { "meta-type": "event", "arg-type": "0" },
      },
      'QEMU does not answer "save.size"',
    ],
    [
      "an answer that became optional",
      { "2": members({ name: "size", type: "int", default: null }) },
      'QEMU does not always answer "save.size"',
    ],
    [
      "a command that left the band",
      { save: { "meta-type": "command", "arg-type": "1", "ret-type": "2" } },
      '"save" cannot run out of band',
    ],
  ])("finds %s", (_what, changes, problem) => {
    expect(compatibilityProblems(schemaWith(), schemaWith(changes), USES)).toContain(problem);
  });

  test("accepts an alternate that still takes what we send", () => {
    const alternate = { "meta-type": "alternate", members: [{ type: "int" }, { type: "str" }] };
    const newer = schemaWith({ "1": members({ ...file, type: "7" }, mode, list), "7": alternate });
    expect(compatibilityProblems(schemaWith(), newer, USES)).toEqual([]);
    const other = schemaWith({
      "1": members({ ...file, type: "7" }, mode, list),
      "7": { ...alternate, members: [{ type: "int" }] },
    });
    expect(compatibilityProblems(schemaWith(), other, USES)).toEqual(['"save.file" takes no builtin']);
  });
});

describe("schemaInUse()", () => {
  test("refuses what is no schema, lacks a type, or refers to itself", () => {
    expect(() => schemaInUse("1", {}, USES, [])).toThrow("QMP schema is no list but object");
    expect(() => schemaWith({ "2": undefined })).toThrow('QMP schema lacks type "2"');
    expect(() => schemaWith({ "6": members({ name: "again", type: "4" }) })).toThrow(
      'type "4" refers to itself',
    );
  });
});

describe("renderTypes()", () => {
  test("writes the arguments in use, those always sent as required, and a union for a tag", () => {
    expect(
      renderTypes(schemaWith(), USES),
    ).toBe(`// Generated by qmp/generate.ts from the query-qmp-schema of QEMU 1.2.3. Do not edit.

/** The commands in use, with the arguments in use. */
export interface QmpCommands {
  save: {
    arguments: {
      file: string;
      mode?: "fast" | "small";
      list?: readonly ({
        kind: "none" | "nothing";
        id: number;
      } | {
        kind: "disk";
        id: number;
        "disk-path": string;
      })[];
    };
    returns: {
      size: number;
      note?: string;
    };
    oob: true;
  };
}

/** The events in use, with their data. */
export interface QmpEvents {
  DONE: {
    size: number;
    note?: string;
  };
}
`);
  });
});
