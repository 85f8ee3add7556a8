import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { type Browser, type BrowserContext, chromium, type Locator, type Page } from "playwright-core";
import { isRoot } from "../../runtime/home.ts";
import { GatewaySandbox } from "../support/gateway-sandbox.ts";
import { ScriptedRuntime } from "../support/scripted-runtime.ts";

/** Milliseconds for each step in the browser: a bound, no expectation. */
const STEP_MS = 60_000;

setDefaultTimeout(150_000);

interface Operation {
  operationId: string;
  summary: string;
  tags: string[];
}

let gateway: GatewaySandbox;
let browser: Browser | undefined;

beforeAll(async () => {
  gateway = await GatewaySandbox.open({ runtime: () => new ScriptedRuntime() });
  browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    chromiumSandbox: !isRoot(),
    // Nothing but the gateway has an address, whoever asks for it.
    args: ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
    timeout: STEP_MS,
  });
});

afterAll(async () => {
  await browser?.close();
  await gateway?.[Symbol.asyncDispose]();
});

/** The page in a profile of its own. */
class DocsPage implements AsyncDisposable {
  /** What the page asked of others, and what it or its browser found wrong, as one line each. */
  readonly complaints: string[] = [];
  readonly #context: BrowserContext;
  readonly #page: Page;

  private constructor(context: BrowserContext, page: Page) {
    this.#context = context;
    this.#page = page;
  }

  static async open(width: number): Promise<DocsPage> {
    const context = await browser!.newContext({ viewport: { width, height: 844 }, serviceWorkers: "block" });
    context.setDefaultTimeout(STEP_MS);
    const docs = new DocsPage(context, await context.newPage());
    try {
      await docs.#watch();
      await docs.page.goto(`${gateway.url}/docs`);
    } catch (error) {
      await docs[Symbol.asyncDispose]();
      throw error;
    }
    return docs;
  }

  get page(): Page {
    return this.#page;
  }

  operation({ tags, operationId }: Pick<Operation, "tags" | "operationId">): Locator {
    return this.#page.locator(`#operations-${tags[0]}-${operationId}`);
  }

  /** Unfolds an operation of jobs to try it. */
  async tryOut(operationId: string): Promise<Locator> {
    const operation = this.operation({ tags: ["jobs"], operationId });
    await operation.locator(".opblock-summary-control").click();
    await operation.getByRole("button", { name: "Try it out" }).click();
    return operation;
  }

  /** Executes what is to be tried: the status and the body that the page shows. */
  async execute(operation: Locator): Promise<{ status: string; body: string }> {
    await operation.getByRole("button", { name: "Execute" }).click();
    const answer = operation.locator(".live-responses-table .response");
    return {
      status: (await answer.locator(".response-col_status").textContent()) ?? "",
      body: (await answer.locator(".highlight-code code").first().textContent()) ?? "",
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#context.close();
  }

  async #watch(): Promise<void> {
    const complain = (line: string) => void this.complaints.push(line);
    const page = this.#page;
    page.on("console", (message) => {
      // Violations of the page's policy come as errors too.
      if (message.type() === "error") complain(`console: ${message.text()}`);
    });
    page.on("pageerror", (error) => complain(`error: ${error.message}`));
    page.on("requestfailed", (request) => complain(`failed: ${request.url()}`));
    page.on("response", (response) => {
      if (response.status() >= 400) complain(`${response.status()}: ${response.url()}`);
    });
    page.on("websocket", (socket) => complain(`socket: ${socket.url()}`));
    await this.#context.route(
      (url) => url.origin !== gateway.url,
      async (route) => {
        complain(`elsewhere: ${route.request().url()}`);
        await route.abort();
      },
    );
  }
}

describe("the page of the API", () => {
  test("shows every operation, and asks nothing of others", async () => {
    await using docs = await DocsPage.open(1000);
    const operations = await listOperations();
    expect(operations.length).toBeGreaterThan(30);
    for (const operation of operations) {
      const summary = docs.operation(operation).locator(".opblock-summary-description");
      expect([operation.operationId, await summary.textContent()]).toEqual([
        operation.operationId,
        operation.summary,
      ]);
    }
    expect(await docs.page.locator(".opblock").count()).toBe(operations.length);
    expect(await docs.page.title()).toBe("Flurry: API");
    expect(await docs.page.locator(".info .title").textContent()).toStartWith("Flurry");
    expect(docs.complaints).toEqual([]);
  });

  test("submits its example, which runs, and lists it", async () => {
    await using docs = await DocsPage.open(1000);
    const submitted = await docs.execute(await docs.tryOut("submitJob"));
    expect(submitted.status).toStartWith("202");
    const { id } = JSON.parse(submitted.body);
    const events = await (await gateway.fetch(`/v1/jobs/${id}/events`)).text();
    expect(events).toContain("event: job.succeeded");
    const listed = await docs.execute(await docs.tryOut("listJobs"));
    expect(listed.status).toStartWith("200");
    const [job] = JSON.parse(listed.body).items;
    expect([job.id, job.state]).toEqual([id, "succeeded"]);
    expect(docs.complaints).toEqual([]);
  });

  test("is no wider than a phone, with an answer too", async () => {
    await using docs = await DocsPage.open(390);
    const submit = await docs.tryOut("submitJob");
    expect((await docs.execute(submit)).status).toStartWith("202");
    await submit.locator(".responses-table").last().waitFor();
    expect(await docs.page.evaluate("document.documentElement.scrollWidth")).toBe(390);
    expect(docs.complaints).toEqual([]);
  });
});

async function listOperations(): Promise<Operation[]> {
  const document = await gateway.json<{ paths: Record<string, Record<string, Operation>> }>("/openapi.json");
  return Object.values(document.paths).flatMap((path) => Object.values(path));
}
