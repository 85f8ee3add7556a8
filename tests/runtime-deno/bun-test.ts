/**
 * What the tests use of `bun:test`, over node:test: deno.json maps the one to the other, so that the
 * same test files run on Deno.
 */
import * as node from "node:test";
import { expect } from "expect";

export { expect };
export const { after: afterAll, afterEach, before: beforeAll, beforeEach } = node;

type Body = () => unknown;
/** As in bun:test, a number is the timeout in milliseconds. */
type Limit = number | { timeout?: number };

type Case = (name: string, body: Body, limit?: Limit) => void;

interface CaseVariants extends Case {
  skip: Case;
  todo(name: string, body?: Body): void;
  if(condition: boolean): Case;
  skipIf(condition: boolean): Case;
  each<Row>(
    rows: readonly Row[],
  ): (name: string, body: (...row: Spread<Row>) => unknown, limit?: Limit) => void;
}

type Spread<Row> = Row extends readonly unknown[] ? Row : [Row];

function defineTest(skip: boolean): Case {
  return (name, body, limit) => {
    const timeout = typeof limit === "number" ? limit : limit?.timeout;
    // node:test hands a context to the body, which bun:test would take for a `done` callback.
    void node.test(name, { skip, ...(timeout === undefined ? {} : { timeout }) }, async () => {
      await body();
    });
  };
}

function defineSuite(skip: boolean): Case {
  return (name, body) => {
    void node.describe(name, { skip }, () => {
      body();
    });
  };
}

function withVariants(define: (skip: boolean) => Case): CaseVariants {
  const plain = define(false);
  return Object.assign(plain, {
    skip: define(true),
    todo: (name: string, body: Body = () => undefined) => define(true)(name, body),
    if: (condition: boolean) => define(!condition),
    skipIf: (condition: boolean) => define(condition),
    each:
      <Row>(rows: readonly Row[]) =>
      (name: string, body: (...row: Spread<Row>) => unknown, limit?: Limit) => {
        for (const row of rows) {
          const values = (Array.isArray(row) ? row : [row]) as Spread<Row>;
          plain(formatName(name, values), () => body(...values), limit);
        }
      },
  });
}

/** Puts the values of a row into the blanks of a name (`%s`, `%d`, `%p`, ...), in order. */
function formatName(name: string, values: readonly unknown[]): string {
  let next = 0;
  return name.replace(/%[sdifjop]/g, () => {
    const value = values[next];
    next += 1;
    return typeof value === "string" ? value : (JSON.stringify(value) ?? String(value));
  });
}

export const test = withVariants(defineTest);
export const describe = withVariants(defineSuite);
