import type { Operation, Pick, Values } from "./gateway-malformed.ts";

/** A request that has one thing wrong, and what that is. */
export interface MalformedRequest {
  path: string;
  init: RequestInit;
  what: string;
}

const JSON_TYPE = "application/json";
const BAD_SEGMENTS = [
  "%00",
  "%ff%fe",
  "-1",
  "1e+999",
  "x".repeat(300),
  "a%2f..%2f..",
  "%F0%9F%92%A5",
  "NaN",
  "%",
  "$(id)",
];

/** A request to an operation with one thing wrong: path, query, header, or body. */
export function malformedRequest(
  operation: Operation,
  values: Values,
  pick: Pick,
): MalformedRequest | undefined {
  const ways = [
    ...operation.parameters.map((_, n) => () => wrongParameter(operation, values, n, pick)),
    ...Object.keys(operation.body).flatMap((type) => [
      // Most of what bodies can have wrong is in their values.
      ...Array<() => MalformedRequest | undefined>(6).fill(() => wrongValue(operation, values, type, pick)),
      () => wrongBytes(operation, values, type, pick),
      () => wrongType(operation, values, type, pick),
    ]),
  ];
  return ways[pick(ways.length)]!();
}

function wrongParameter(
  operation: Operation,
  values: Values,
  n: number,
  pick: Pick,
): MalformedRequest | undefined {
  const { name, in: place, schema } = operation.parameters[n]!;
  const request = validRequest(operation, values);
  if (place === "path") {
    // A path to an artifact may be anything: it is the rest of the request that makes it wrong.
    const segment = BAD_SEGMENTS[pick(BAD_SEGMENTS.length)]!;
    request.path = pathOf(operation, values, { [name]: segment });
    return { ...request, what: `${name} = ${segment.slice(0, 50)}` };
  }
  const wrong = values.wrong(schema, pick);
  if (wrong === undefined || wrong.value === null || typeof wrong.value === "object") return undefined;
  const text = String(wrong.value);
  // As text, a number is a number, and an integer's "true" is none.
  if (typeof wrong.value === "string" ? fitsAsText(text, schema.type) : schema.type === "string")
    return undefined;
  if (place === "query") {
    const twice = pick(3) === 0;
    const query = `${name}=${encodeURIComponent(text)}`;
    request.path += `?${query}${twice ? `&${query}` : ""}`;
  } else {
    if (/[^\x20-\x7e]/.test(text) || text.trim() !== text || text === "") return undefined;
    request.init.headers = { ...request.init.headers, [name]: text };
  }
  return { ...request, what: `${place} ${name}: ${wrong.what}` };
}

function wrongValue(
  operation: Operation,
  values: Values,
  type: string,
  pick: Pick,
): MalformedRequest | undefined {
  const wrong = values.wrong(operation.body[type]!, pick);
  if (wrong === undefined) return undefined;
  const lines = type === JSON_TYPE ? "" : "\n1\n2\n";
  const request = validRequest(operation, values, type);
  request.init.body = `${JSON.stringify(wrong.value)}${lines}`;
  return { ...request, what: `body: ${wrong.what}` };
}

function wrongBytes(operation: Operation, values: Values, type: string, pick: Pick): MalformedRequest {
  const valid = JSON.stringify(values.valid(operation.body[type]!));
  const more = type === JSON_TYPE ? "" : "\n1\n";
  const bodies: [string, string | Uint8Array<ArrayBuffer>][] = [
    ["cut", valid.slice(0, pick(valid.length))],
    ["empty", ""],
    ["nested", `${"[".repeat(20_000)}${"]".repeat(20_000)}`],
    ["nested objects", `${'{"a":'.repeat(5000)}1${"}".repeat(5000)}`],
    ["open", "[".repeat(30_000)],
    ["huge", JSON.stringify({ more: "x".repeat(200_000) })],
    ["not UTF-8", Uint8Array.from([...new TextEncoder().encode(valid.slice(0, -1)), 0x22, 0xff, 0xfe, 0x22])],
    ["a NUL", `${valid}\0`],
    ["two values", `${valid}${valid}`],
    ["no JSON", "worker=a&tasks=1"],
    ["bytes", Uint8Array.from({ length: 100 }, () => pick(256))],
    ["NaN", valid.replace(/[}\]]$/, ',"x":NaN$&')],
    ...(more === ""
      ? []
      : ([
          ["a bad line", `${valid}\n1\n{"a":\n`],
          ["a deep line", `${valid}\n${"[".repeat(500)}${"]".repeat(500)}\n`],
        ] as [string, string][])),
  ];
  const [what, body] = bodies[pick(bodies.length)]!;
  const request = validRequest(operation, values, type);
  request.init.body = body;
  return { ...request, what: `body: ${what}` };
}

function wrongType(operation: Operation, values: Values, type: string, pick: Pick): MalformedRequest {
  const types = [
    "text/plain",
    "application/xml",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/jsonx",
    "application/json; charset=utf-16",
    "json",
    "*/*",
    ";",
  ];
  const request = validRequest(operation, values, type);
  const chosen = pick(types.length + 1);
  const header: Record<string, string> =
    chosen === types.length
      ? { "content-type": type, "content-encoding": "gzip" }
      : { "content-type": types[chosen]! };
  request.init.headers = { ...request.init.headers, ...header };
  return { ...request, what: `type ${JSON.stringify(header)}` };
}

function validRequest(
  operation: Operation,
  values: Values,
  type = Object.keys(operation.body)[0],
): MalformedRequest {
  const init: RequestInit = { method: operation.method };
  if (type !== undefined) {
    init.headers = { "content-type": type };
    init.body = JSON.stringify(values.valid(operation.body[type]!));
  }
  return { path: pathOf(operation, values), init, what: "nothing" };
}

function pathOf(operation: Operation, values: Values, given: Record<string, string> = {}): string {
  return operation.path.replaceAll(/\{(\w+)\}/g, (_, name: string) => {
    const schema = operation.parameters.find((parameter) => parameter.name === name)?.schema ?? {};
    return given[name] ?? encodeURIComponent(String(values.valid(schema)));
  });
}

function fitsAsText(text: string, type: string | string[] | undefined): boolean {
  return type === "integer" || type === "number" ? /^-?\d+$/.test(text) : false;
}
