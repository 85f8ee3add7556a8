import type { CommandUse } from "./commands-in-use.ts";

/** A type of QEMU's schema with every reference resolved: a tree, comparable across versions. */
export type Shape =
  | { kind: "builtin"; json: string }
  | { kind: "enum"; values: readonly string[] }
  | { kind: "array"; of: Shape }
  | { kind: "alternate"; of: readonly Shape[] }
  | ObjectShape;

export interface ObjectShape {
  kind: "object";
  members: Readonly<Record<string, { optional: boolean; shape: Shape }>>;
  /** Members that come with a value of the member `tag`. */
  tag?: string;
  variants?: Readonly<Record<string, ObjectShape>>;
}

export interface CommandShape {
  arguments: ObjectShape;
  returns: Shape;
  oob: boolean;
}

/** The part of one QEMU's schema that the project uses. */
export interface SchemaInUse {
  /** QEMU's version, `major.minor.micro`. */
  version: string;
  commands: Readonly<Record<string, CommandShape>>;
  events: Readonly<Record<string, ObjectShape>>;
}

interface SchemaMember {
  name?: string;
  type: string;
  default?: unknown;
}

/** An entry of `query-qmp-schema`, loosely: the fields of all meta-types. */
interface SchemaEntry {
  name: string;
  "meta-type": string;
  "json-type"?: string;
  "element-type"?: string;
  "arg-type"?: string;
  "ret-type"?: string;
  "allow-oob"?: boolean;
  values?: string[];
  members?: SchemaMember[];
  tag?: string;
  variants?: { case: string; type: string }[];
}

/**
 * Picks the commands and events in use out of a whole schema. What this QEMU does not have is left
 * out; arguments are all those that it has, in use or not.
 *
 * @param entries The answer of `query-qmp-schema`.
 * @throws TypeError when it is no schema, or a type in use refers to itself.
 */
export function schemaInUse(
  version: string,
  entries: unknown,
  commands: Readonly<Record<string, CommandUse>>,
  events: readonly string[],
): SchemaInUse {
  if (!Array.isArray(entries)) throw new TypeError(`QMP schema is no list but ${typeof entries}`);
  const byName = new Map<string, SchemaEntry>(entries.map((entry: SchemaEntry) => [entry.name, entry]));
  const found = (name: string, kind: string): SchemaEntry | undefined => {
    const entry = byName.get(name);
    return entry?.["meta-type"] === kind ? entry : undefined;
  };
  return {
    version,
    commands: Object.fromEntries(
      Object.keys(commands).flatMap((name) => {
        const entry = found(name, "command");
        if (entry === undefined) return [];
        const shape: CommandShape = {
          arguments: resolveObject(byName, entry["arg-type"], []),
          returns: resolve(byName, entry["ret-type"], []),
          oob: entry["allow-oob"] === true,
        };
        return [[name, shape]];
      }),
    ),
    events: Object.fromEntries(
      events.flatMap((name) => {
        const entry = found(name, "event");
        return entry === undefined ? [] : [[name, resolveObject(byName, entry["arg-type"], [])]];
      }),
    ),
  };
}

function resolveObject(
  byName: Map<string, SchemaEntry>,
  name: string | undefined,
  path: string[],
): ObjectShape {
  const shape = resolve(byName, name, path);
  if (shape.kind !== "object")
    throw new TypeError(`QMP schema type "${name}" is no object but ${shape.kind}`);
  return shape;
}

function resolve(byName: Map<string, SchemaEntry>, name: string | undefined, path: string[]): Shape {
  const entry = name === undefined ? undefined : byName.get(name);
  if (name === undefined || entry === undefined) throw new TypeError(`QMP schema lacks type "${name}"`);
  if (path.includes(name)) throw new TypeError(`QMP schema type "${name}" refers to itself`);
  const inner = [...path, name];
  const members = entry.members ?? [];
  switch (entry["meta-type"]) {
    case "builtin":
      return { kind: "builtin", json: entry["json-type"] ?? "value" };
    case "enum":
      return { kind: "enum", values: entry.values ?? members.map((member) => member.name ?? "") };
    case "array":
      return { kind: "array", of: resolve(byName, entry["element-type"], inner) };
    case "alternate":
      return { kind: "alternate", of: members.map((member) => resolve(byName, member.type, inner)) };
    case "object": {
      const shape: ObjectShape = {
        kind: "object",
        members: Object.fromEntries(
          members.map((member) => [
            member.name ?? "",
            { optional: "default" in member, shape: resolve(byName, member.type, inner) },
          ]),
        ),
      };
      if (entry.tag !== undefined && entry.variants !== undefined) {
        shape.tag = entry.tag;
        shape.variants = Object.fromEntries(
          entry.variants.map((variant) => [variant.case, resolveObject(byName, variant.type, inner)]),
        );
      }
      return shape;
    }
    default:
      throw new TypeError(`QMP schema type "${name}" has unknown meta-type "${entry["meta-type"]}"`);
  }
}
