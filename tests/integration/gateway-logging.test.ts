import { describe, expect, test } from "bun:test";
import { getLogger } from "@logtape/logtape";
import { FlurryError } from "../../errors/errors.ts";
import { startLogging } from "../../runtime/gateway/logging.ts";
import { GatewaySandbox, jobOf } from "../support/gateway-sandbox.ts";

interface Line {
  "@timestamp": string;
  level: string;
  message: string;
  logger: string;
  [property: string]: unknown;
}

/** Logs of a service, as lines that were parsed. */
async function logged(
  act: (gateway: GatewaySandbox) => Promise<void>,
): Promise<{ text: string; lines: Line[] }> {
  const written: string[] = [];
  {
    await using _logging = await startLogging({ write: (line) => void written.push(line) });
    await using gateway = await GatewaySandbox.open();
    await act(gateway);
  }
  const text = written.join("");
  const lines = text.split("\n").filter((line) => line !== "");
  return { text, lines: lines.map((line) => JSON.parse(line)) };
}

describe("the log of a service", () => {
  test("has one line of JSON for each request, with its id and who asked", async () => {
    let id = "";
    let requestId: string | null = "";
    const { lines } = await logged(async (gateway) => {
      const admin = await gateway.key(["admin"]);
      id = admin.id;
      const response = await gateway.fetch("/v1/jobs/job_0123456789abcdef01234567?a=b", { key: admin.key });
      requestId = response.headers.get("x-request-id");
    });
    const ofRequest = lines.filter((line) => line.requestId === requestId);
    const access = ofRequest.filter(({ logger }) => logger.includes("access"));
    expect(access).toMatchObject([
      { level: "INFO", method: "GET", route: "/v1/jobs/{id}", status: 404, requestId, key: id },
    ]);
    expect(access[0]?.message).toBe("GET /v1/jobs/{id} 404");
    expect(typeof access[0]?.ms).toBe("number");
    expect(Number.isNaN(Date.parse(access[0]!["@timestamp"]))).toBe(false);
  });

  test("has the whole error of what fails inside, under the request's id", async () => {
    let requestId = "";
    const { lines } = await logged(async (gateway) => {
      const broken = new Error("Broken by the test", { cause: new Error("Deep inside") });
      gateway.context.store.secrets.list = () => Promise.reject(broken);
      const problem = await gateway.problem("/v1/secrets");
      expect(JSON.stringify(problem)).not.toContain("Broken");
      requestId = problem.requestId;
    });
    const error = lines.find(({ level }) => level === "ERROR");
    expect(error).toMatchObject({ requestId, code: "INTERNAL" });
    expect(error?.error).toContain("Broken by the test");
    expect(error?.error).toContain("Caused by Error: Deep inside");
  });

  test("names the store's files, which the asker is not told of", async () => {
    const answers: [number, string][] = [];
    const { lines } = await logged(async (gateway) => {
      for (const code of ["NO_SPACE", "STORE_FAILED"] as const) {
        const failure = new FlurryError(code, "Cannot write /srv/flurry/flurry.db");
        gateway.context.store.secrets.put = () => Promise.reject(failure);
        const put = { method: "PUT", json: { value: "hush" } };
        const { status, detail } = await gateway.problem("/v1/secrets/a", put);
        answers.push([status, detail]);
      }
    });
    expect(answers).toEqual([
      [507, "The gateway's disk is full"],
      [500, "The gateway's store failed"],
    ]);
    const errors = lines.filter(({ level }) => level === "ERROR").map(({ error }) => String(error));
    expect(errors.map((error) => error.includes("/srv/flurry/flurry.db"))).toEqual([true, true]);
  });

  test("has messages as people write them, and their values beside", async () => {
    const written: string[] = [];
    const error = new Error('Cannot read "it"');
    {
      await using _logging = await startLogging({ write: (line) => void written.push(line) });
      getLogger(["flurry", "test"]).warn("{what} of {list} took {ms} ms: {error}", {
        ...{ what: "Part\n1", list: ["a"], ms: 1.5, error },
      });
    }
    expect(written).toHaveLength(1);
    expect(JSON.parse(written[0]!)).toMatchObject({
      message: 'Part\n1 of ["a"] took 1.5 ms: Cannot read "it"',
      ...{ what: "Part\n1", list: ["a"], ms: 1.5, error: error.stack! },
    });
  });

  test("holds no secret: no key, no value, no body, no query", async () => {
    const { text } = await logged(async (gateway) => {
      const { key } = await gateway.key(["admin"]);
      await gateway.fetch("/v1/secrets/a?token=HUSH", { method: "PUT", json: { value: "HUSH" }, key });
      await gateway.fetch("/v1/secrets/a", { method: "PUT", json: { value: ["HUSH"] }, key });
      await gateway.fetch("/v1/jobs", { key: "flk_HUSH" });
      await gateway.submit(jobOf(1, { env: { A: "HUSH" } }), { key });
      await gateway.fetch("/v1/keys", { key });
      expect(key).toHaveLength(64);
    });
    expect(text).not.toContain("HUSH");
    expect(text).not.toMatch(/flk_/);
  });
});
