/** JSON Schema, as far as OpenAPI documents of the gateway have it. */
export interface Schema {
  $ref?: string;
  type?: string | string[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
  enum?: unknown[];
  const?: unknown;
  properties?: Record<string, Schema>;
  required?: string[];
  additionalProperties?: boolean | Schema;
  propertyNames?: Schema;
  items?: Schema;
  minItems?: number;
  maxItems?: number;
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  minLength?: number;
  maxLength?: number;
  pattern?: string;
  format?: string;
  example?: unknown;
  examples?: unknown[];
}

export interface Parameter {
  name: string;
  in: "path" | "query" | "header" | "cookie";
  required?: boolean;
  schema: Schema;
}

export interface Operation {
  method: string;
  path: string;
  operationId: string;
  parameters: Parameter[];
  /** Schemas of the body by media type. */
  body: Record<string, Schema>;
}

export interface OpenApiDocument {
  paths: Record<
    string,
    Record<
      string,
      {
        operationId: string;
        parameters?: Parameter[];
        requestBody?: { content: Record<string, { schema: Schema }> };
      }
    >
  >;
  components: { schemas: Record<string, Schema> };
}

/** Gives a whole number from 0 to below `n`. */
export type Pick = (n: number) => number;

/** Operations of a document that take anything. */
export function operationsOf(document: OpenApiDocument): Operation[] {
  return Object.entries(document.paths)
    .flatMap(([path, item]) =>
      Object.entries(item).map(([method, { operationId, parameters = [], requestBody }]) => ({
        method: method.toUpperCase(),
        path,
        operationId,
        parameters,
        body: Object.fromEntries(
          Object.entries(requestBody?.content ?? {}).map(([type, { schema }]) => [type, schema]),
        ),
      })),
    )
    .filter(({ parameters, body }) => parameters.length > 0 || Object.keys(body).length > 0);
}

/** A value, and what is wrong with it. */
interface Wrong {
  value: unknown;
  what: string;
}

const STRINGS = [
  "a",
  "/a",
  "job_ffffffffffffffffffffffff",
  "https://example.org/",
  "2026-01-31T12:00:00.000Z",
  "A",
  "aaaaaaaaaaaaaaaa",
  "1",
];

/** Values that fit the schemas of a document, and values that have one thing wrong. */
export class Values {
  readonly #schemas: Record<string, Schema>;

  constructor(document: OpenApiDocument) {
    this.#schemas = document.components.schemas;
  }

  /** A small value that fits. */
  valid(schema: Schema): unknown {
    const own = this.#resolve(schema);
    if (own.const !== undefined) return own.const;
    if (own.enum) return own.enum[0];
    const [branch] = own.anyOf ?? own.oneOf ?? own.allOf ?? [];
    if (branch) return this.valid(branch);
    switch (typesOf(own)[0]) {
      case "object":
        return Object.fromEntries(
          (own.required ?? []).map((name) => [name, this.valid(own.properties?.[name] ?? {})]),
        );
      case "array":
        return Array.from({ length: own.minItems ?? 0 }, () => this.valid(own.items ?? {}));
      case "integer":
      case "number":
        return Math.max(own.minimum ?? 0, own.exclusiveMinimum === undefined ? 0 : own.exclusiveMinimum + 1);
      case "boolean":
        return true;
      case "string":
        return this.#string(own);
      default:
        return null;
    }
  }

  /** A value that does not fit, at one place of it; undefined where everything fits. */
  wrong(schema: Schema, pick: Pick): Wrong | undefined {
    const own = this.#resolve(schema);
    const branches = own.anyOf ?? own.oneOf;
    const here = this.#wrongHere(own);
    const inner = branches ? [] : Object.keys(own.properties ?? {});
    // Deeper as often as not, so that every level gets its share.
    if (inner.length > 0 && pick(3) > 0) {
      const name = inner[pick(inner.length)]!;
      const below = this.wrong(own.properties![name]!, pick);
      if (below !== undefined) {
        const whole = { ...(this.valid(own) as object), [name]: below.value };
        return { value: whole, what: `${name}: ${below.what}` };
      }
    }
    if (own.items && (own.minItems ?? 0) <= 1 && pick(2) > 0) {
      const below = this.wrong(own.items, pick);
      if (below !== undefined) return { value: [below.value], what: `an item: ${below.what}` };
    }
    return here.length === 0 ? undefined : here[pick(here.length)];
  }

  #wrongHere(own: Schema): Wrong[] {
    const list: Wrong[] = [];
    const types = this.#allTypes(own);
    if (types.size === 0) return list;
    const others: [string, unknown][] = [
      ["object", {}],
      ["array", []],
      ["string", "\u0001!"],
      ["number", -1.5],
      ["boolean", true],
      ["null", null],
    ];
    for (const [type, value] of others) {
      const fits = types.has(type) || (type === "number" && types.has("integer"));
      if (!fits) list.push({ value, what: `${type} in place of ${[...types]}` });
    }
    if (own.anyOf ?? own.oneOf) return list;
    if (own.enum || own.const !== undefined) list.push({ value: "none of these", what: "not of the enum" });
    for (const name of own.required ?? []) {
      const { [name]: _, ...rest } = this.valid(own) as Record<string, unknown>;
      list.push({ value: rest, what: `without ${name}` });
    }
    if (own.additionalProperties === false) {
      const whole = this.valid(own) as object;
      list.push({ value: { ...whole, more: 1 }, what: "an unknown property" });
      list.push({
        value: JSON.parse(`{"__proto__":1,${JSON.stringify(whole).slice(1)}`.replace(",}", "}")),
        what: "__proto__",
      });
    }
    if (types.has("array")) {
      const item = this.valid(own.items ?? {});
      if (own.minItems) list.push({ value: [], what: "too few items" });
      if (own.maxItems && own.maxItems < 5000) {
        list.push({ value: Array(own.maxItems + 1).fill(item), what: "too many items" });
      }
    }
    if (types.has("integer"))
      list.push({ value: 1.25, what: "no whole number" }, { value: 1e300, what: "huge" });
    if (own.minimum !== undefined) list.push({ value: own.minimum - 1, what: "too small" });
    if (own.maximum !== undefined) list.push({ value: own.maximum + 1, what: "too large" });
    if (types.has("string")) {
      if (own.minLength) list.push({ value: "", what: "empty" });
      if (own.maxLength) list.push({ value: "a".repeat(own.maxLength + 1), what: "too long" });
      if (own.pattern && !new RegExp(own.pattern).test("\u0001!"))
        list.push({ value: "\u0001!", what: "no match" });
    }
    return list;
  }

  #string(own: Schema): string {
    const { example, examples = [], pattern, minLength = 0, maxLength = Number.POSITIVE_INFINITY } = own;
    const candidates = [example, ...examples, ...STRINGS].filter((value) => typeof value === "string");
    const regex = new RegExp(pattern ?? "");
    const fits = (text: string) => regex.test(text) && text.length >= minLength && text.length <= maxLength;
    return candidates.find(fits) ?? "a".repeat(minLength);
  }

  #allTypes(schema: Schema): Set<string> {
    const own = this.#resolve(schema);
    const branches = own.anyOf ?? own.oneOf ?? own.allOf;
    if (branches) {
      const sets = branches.map((branch) => this.#allTypes(branch));
      // A branch that takes everything makes the whole take everything.
      return sets.some(({ size }) => size === 0) ? new Set() : new Set(sets.flatMap((set) => [...set]));
    }
    if (own.enum) return new Set(own.enum.map((value) => (value === null ? "null" : typeof value)));
    return new Set(typesOf(own));
  }

  #resolve(schema: Schema): Schema {
    if (schema.$ref === undefined) return schema;
    const name = schema.$ref.replace("#/components/schemas/", "");
    const found = this.#schemas[name];
    if (!found) throw new Error(`The document has no schema ${name}`);
    return this.#resolve(found);
  }
}

function typesOf({ type }: Schema): string[] {
  return type === undefined ? [] : Array.isArray(type) ? type : [type];
}
