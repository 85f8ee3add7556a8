import { benchHttp, type HttpBenchResult } from "./gateway-http.ts";
import { benchJob, type JobBenchResult } from "./gateway-job.ts";

export interface GatewayBenchOptions {
  /** Requests of each kind at each concurrency. */
  requests: number;
  /** Tasks through real children; 0 to start no VM. */
  tasks: number;
  /** Tasks without VMs. */
  scriptedTasks: number;
  onProgress?: ((stage: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface GatewayBenchResult {
  /** Of JavaScript, with its version. */
  runtime: string;
  requests: number;
  http: HttpBenchResult;
  job?: JobBenchResult;
}

/** Measures the gateway on this machine: what it adds to HTTP, and how fast tasks go through it. */
export async function benchGateway(options: GatewayBenchOptions): Promise<GatewayBenchResult> {
  const { requests, tasks, scriptedTasks, onProgress, signal } = options;
  const { bun, deno } = process.versions;
  const runtime = bun === undefined ? `deno ${deno}` : `bun ${bun}`;
  const http = await benchHttp({ requests, tasks: scriptedTasks, onProgress, signal });
  if (tasks === 0) return { runtime, requests, http };
  return { runtime, requests, http, job: await benchJob({ tasks, onProgress, signal }) };
}
