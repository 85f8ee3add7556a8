import { z } from "zod";
import { createApp } from "../../runtime/gateway/app.ts";
import type { GatewayContext } from "../../runtime/gateway/context.ts";
import { gatewayRoutes } from "../../runtime/gateway/routes.ts";

interface Described {
  responses: Record<string, { content?: Record<string, { schema: object }> }>;
}

interface Document {
  paths: Record<string, Record<string, Described>>;
  components: { schemas: Record<string, object> };
}

/** Statuses that say nothing of one operation: of hono's own, and of requests that reach none. */
const OF_NONE = [404, 405];

/** Compares what a gateway answers with what its OpenAPI document says of it. */
export class DeclaredAnswers {
  readonly #operations: { method: string; path: RegExp; described: Described }[];
  readonly #schemas: Record<string, object>;
  readonly #validators = new Map<object, z.ZodType>();

  private constructor({ paths, components }: Document) {
    this.#schemas = components.schemas;
    this.#operations = Object.entries(paths).flatMap(([template, methods]) =>
      Object.entries(methods).map(([method, described]) => ({
        method: method.toUpperCase(),
        path: pathPattern(template),
        described,
      })),
    );
  }

  /** Reads the document of a gateway without asking over HTTP, which tests may count. */
  static async of(context: GatewayContext): Promise<DeclaredAnswers> {
    const app = createApp(context, { routes: gatewayRoutes(context) });
    const answer = await app.request("/openapi.json");
    return new DeclaredAnswers((await answer.json()) as Document);
  }

  /** Throws when the answer is none that is declared. What is streamed is checked by its head. */
  async check(method: string, path: string, response: Response): Promise<void> {
    const asked = method === "HEAD" ? "GET" : method;
    const name = path.split("?")[0]!;
    const operation = this.#operations.find((each) => each.method === asked && each.path.test(name));
    const { status } = response;
    if (!operation) return;
    const declared = operation.described.responses[String(status)];
    if (!declared) {
      if (OF_NONE.includes(status) || method === "HEAD") return;
      throw new Error(`${method} ${name} is not to answer with ${status}`);
    }
    const type = response.headers.get("content-type")?.split(";")[0] ?? "";
    const content = declared.content ?? {};
    if (Object.keys(content).length === 0 || method === "HEAD") return;
    const described = content[type];
    // An artifact has the type of its name.
    if (!described && content["application/octet-stream"]) return;
    if (!described) throw new Error(`${method} ${name} is not to answer with ${type}`);
    if (type !== "application/json" && type !== "application/problem+json") return;
    const result = this.#validator(described.schema).safeParse(await response.clone().json());
    if (!result.success) throw new Error(`${method} ${name} gave ${status} with ${result.error.message}`);
  }

  #validator(schema: object): z.ZodType {
    const known = this.#validators.get(schema);
    if (known) return known;
    const text = JSON.stringify({ ...schema, $defs: this.#schemas }).replaceAll(
      "#/components/schemas/",
      "#/$defs/",
    );
    const made = z.fromJSONSchema(JSON.parse(text));
    this.#validators.set(schema, made);
    return made;
  }
}

/** A template of a path; only a path to an artifact has a parameter with slashes. */
function pathPattern(template: string): RegExp {
  const pattern = template.replace("/{path}", "/.+").replaceAll(/\{\w+\}/g, "[^/]+");
  return new RegExp(`^${pattern}$`);
}
