import http from "node:http";
import type { AddressInfo } from "node:net";

/** A span as OTLP/JSON has it. */
export interface CollectedSpan {
  name: string;
  kind: number;
  traceId: string;
  spanId: string;
  parentSpanId?: string;
  attributes: { key: string; value: Record<string, unknown> }[];
  status?: { code?: number };
}

interface Export {
  resourceSpans: {
    resource: { attributes: CollectedSpan["attributes"] };
    scopeSpans: { spans: CollectedSpan[] }[];
  }[];
}

/** A collector of OTLP over HTTP, named by the environment while it is there. */
export class Collector implements AsyncDisposable {
  readonly spans: CollectedSpan[] = [];
  readonly services = new Set<unknown>();
  /** Requests that were not answered when it came to its end. */
  open = 0;
  readonly #server: http.Server;
  #asked = Promise.withResolvers<void>();

  private constructor(answers: boolean) {
    this.#server = http.createServer((request, response) => {
      this.open += 1;
      response.on("close", () => this.open--);
      const parts: Buffer[] = [];
      request.on("data", (part: Buffer) => parts.push(part));
      request.on("end", () => {
        if (request.url === "/v1/traces") this.#take(JSON.parse(Buffer.concat(parts).toString()));
        if (answers) response.writeHead(200, { "content-type": "application/json" }).end("{}");
        this.#asked.resolve();
      });
    });
  }

  /** @param answers - whether it ever answers. @default true */
  static async open(answers = true): Promise<Collector> {
    const collector = new Collector(answers);
    const { promise, resolve } = Promise.withResolvers<void>();
    collector.#server.listen(0, "127.0.0.1", resolve);
    await promise;
    const { port } = collector.#server.address() as AddressInfo;
    process.env.OTEL_EXPORTER_OTLP_ENDPOINT = `http://127.0.0.1:${port}`;
    return collector;
  }

  /** Waits until something has been sent. */
  get asked(): Promise<void> {
    return this.#asked.promise;
  }

  #take({ resourceSpans }: Export): void {
    for (const { resource, scopeSpans } of resourceSpans) {
      this.services.add(resource.attributes.find(({ key }) => key === "service.name")?.value.stringValue);
      this.spans.push(...scopeSpans.flatMap(({ spans }) => spans));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    delete process.env.OTEL_EXPORTER_OTLP_ENDPOINT;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#server.close(() => resolve());
    this.#server.closeAllConnections();
    await promise;
  }
}
