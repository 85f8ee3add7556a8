import { spawn } from "node:child_process";
import { once } from "node:events";
import type { WorkerBundle } from "../guest-agent/worker-host/bundle.ts";
import { FlurryClient } from "../runtime/client/mod.ts";
import { bunProgram } from "../runtime/workers/js/js-image.ts";

const PATH = "items/7";
const ANSWER = '{"id":7,"name":"item 7"}';
/** Time between two looks whether a worker is ready: nobody tells. */
const LOOK_MS = 200;

/** How one request went. */
export interface Asked {
  ok: boolean;
  ttfbMs: number;
  /** The time at which the answer had arrived, by `performance.now()`. */
  endedAt: number;
  /** The VM that has answered. */
  vm?: string | undefined;
}

/** Asks the app once, and reads the right answer. */
export async function ask(url: string): Promise<Asked> {
  const began = performance.now();
  try {
    const answer = await fetch(new URL(PATH, url));
    const ttfbMs = performance.now() - began;
    const ok = (await answer.text()) === ANSWER;
    return { ok, ttfbMs, endedAt: performance.now(), vm: answer.headers.get("x-vm") ?? undefined };
  } catch {
    // It counts as an error, whatever it is.
    const endedAt = performance.now();
    return { ok: false, ttfbMs: endedAt - began, endedAt };
  }
}

/** A step from none to n at once. */
export async function askAll(url: string, n: number): Promise<Asked[]> {
  return await Promise.all(Array.from({ length: n }, () => ask(url)));
}

export interface DeployOptions {
  bundle: WorkerBundle;
  memMiB: number;
  mode: "request" | "shared";
  /** Forks ahead of need at most. */
  ahead: number;
  signal?: AbortSignal | undefined;
}

/** Deploys the app to a gateway. Returns its URL when it is ready and has been asked once. */
export async function deployed(gateway: string, name: string, options: DeployOptions): Promise<string> {
  const { bundle, memMiB, mode, ahead, signal } = options;
  const { workers } = new FlurryClient({ url: gateway });
  const waiting = { queueMs: 600_000, maxQueue: 100_000, timeoutMs: 600_000 };
  let worker = await workers.put(
    name,
    {
      module: { code: Buffer.from(bundle.code).toString(), warmUp: [{ path: `/${PATH}` }] },
      memoryMiB: memMiB,
      http: { isolation: { mode }, ahead, ...waiting },
    },
    { signal },
  );
  while (worker.state !== "ready") {
    if (worker.state === "failed") throw new Error(`The app does not load: ${worker.error?.message}`);
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
    worker = await workers.get(name, { signal });
  }
  const url = `${gateway}/w/${name}/`;
  const first = await ask(url);
  if (!first.ok) throw new Error("The app does not answer");
  return url;
}

/** The app on plain Bun, which serves what a module exports by default. */
export async function serveOnHost(app: string): Promise<{ url: string } & AsyncDisposable> {
  const child = spawn(bunProgram(), ["run", app], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, PORT: "0", NODE_ENV: "production" },
  });
  const exited = once(child, "exit");
  const end = async () => {
    child.kill("SIGKILL");
    await exited;
  };
  let said = "";
  try {
    const url = await new Promise<string>((resolve, reject) => {
      const onData = (data: Buffer) => {
        said += data.toString();
        const found = /http:\/\/[^\s/]+:\d+/.exec(said)?.[0];
        if (found) resolve(`${found}/`);
      };
      child.stdout.on("data", onData);
      child.stderr.on("data", onData);
      child.once("error", reject);
      void exited.then(() => reject(new Error(`The app on the host has ended: ${said}`)));
    });
    return { url, [Symbol.asyncDispose]: end };
  } catch (error) {
    await end();
    throw error;
  }
}
