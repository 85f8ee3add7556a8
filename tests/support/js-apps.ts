import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { exchange, type WireAnswer, type WireRequest } from "./http-exchange.ts";
import {
  answersRequests,
  commonRequests,
  echoRequests,
  filesRequests,
  loginRequests,
  tasksRequests,
} from "./js-apps-requests.ts";

/** An application that others have published, and what it is asked. */
export interface JsApp {
  /** Of the worker. */
  name: string;
  /** Of its module. */
  entry: string;
  requests: WireRequest[];
}

const here = (name: string) => join(import.meta.dirname, "apps", name);
const template = (path: string) =>
  join(import.meta.dirname, "../../node_modules/create-cloudflare/templates", path);

/** The routes are the packages' own; a file of ours calls its factory, or stands in for a bucket. */
export const jsApps: JsApp[] = [
  // Hono: @scalar/void-server
  { name: "echo", entry: here("echo.ts"), requests: echoRequests },
  // itty-router: Cloudflare's OpenAPI application, and its example of several handlers
  { name: "tasks", entry: template("openapi/ts/src/index.ts"), requests: tasksRequests },
  { name: "common", entry: template("common/js/src/index.js"), requests: commonRequests },
  // Plain Workers modules: render2 and @octokit/oauth-app
  { name: "files", entry: here("files.ts"), requests: filesRequests },
  { name: "login", entry: here("login.ts"), requests: loginRequests },
];

/** Not an application: a module of ours with every kind of answer. */
export const answersApp: JsApp = { name: "answers", entry: here("answers.ts"), requests: answersRequests };

/** An app served by Bun alone, in a process of its own. */
export class PlainBun implements AsyncDisposable {
  readonly port: number;
  readonly #process: ChildProcess;
  readonly #exited: Promise<unknown>;

  private constructor(child: ChildProcess, exited: Promise<unknown>, port: number) {
    this.#process = child;
    this.#exited = exited;
    this.port = port;
  }

  static async serving(entry: string): Promise<PlainBun> {
    const argv = ["--no-env-file", join(import.meta.dirname, "serves-app.ts"), entry];
    const env = { PATH: process.env.PATH ?? "", NODE_ENV: "production" };
    const child = spawn(process.execPath, argv, { stdio: ["ignore", "pipe", "inherit"], env });
    const exited = once(child, "exit");
    const lines = createInterface(child.stdout!);
    const [line] = await Promise.race([once(lines, "line"), exited.then(() => [""])]);
    if (!/^\d+$/.test(line)) throw new Error(`Bun does not serve ${entry}`);
    return new PlainBun(child, exited, Number(line));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#exited;
  }
}

export interface AskOptions {
  /** Put in front of each target, for a server that serves others too. */
  prefix?: string | undefined;
  /** In place of each request's own. */
  host?: string | undefined;
}

/** Asks all of an app's requests in their order. */
export async function askAll(port: number, app: JsApp, options: AskOptions = {}): Promise<WireAnswer[]> {
  const { prefix = "", host } = options;
  const answers: WireAnswer[] = [];
  for (const request of app.requests) {
    const headers = request.headers.map(([name, value]): [string, string] => [
      name,
      name === "Host" && host !== undefined ? host : value,
    ]);
    answers.push(await exchange(port, { ...request, target: `${prefix}${request.target}`, headers }));
  }
  return answers;
}

/** Headers of the answering server and of the one connection, not of the app. */
const notCompared = new Set(["date", "connection", "keep-alive", "transfer-encoding"]);

/**
 * An answer as far as it must be the same, with the request that it answers. Headers are in the order of
 * their names; those of one name keep theirs.
 *
 * @param without - more headers that are not compared
 */
export function comparable(app: JsApp, answers: WireAnswer[], without: string[] = []): unknown[] {
  return answers.map(({ status, headers, body }, i) => {
    const { method, target } = app.requests[i]!;
    const kept = headers.filter(([name]) => !notCompared.has(name) && !without.includes(name));
    kept.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    // The one moment in an answer: a task of Cloudflare's application is due on the day of the request.
    const text = body.toString("latin1");
    const today = app.name === "tasks" && /^\/api\/tasks\/./.test(target);
    const shown = today ? text.replace(/"due_date":"\d{4}-\d\d-\d\d"/, '"due_date":"today"') : text;
    return { asked: `${method} ${target}`, status, headers: kept, body: shown };
  });
}
