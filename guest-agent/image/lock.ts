import { spawn } from "node:child_process";
import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";

/**
 * Waits for an exclusive lock on a file and holds it until disposed. The lock is the kernel's
 * (flock(1)), held by a helper process that ends with its standard input, so it is also free
 * as soon as this process dies in whatever way.
 *
 * @throws the signal's reason if aborted while waiting
 */
export async function acquireLock(path: string, signal?: AbortSignal): Promise<AsyncDisposable> {
  signal?.throwIfAborted();
  await mkdir(dirname(path), { recursive: true });
  const child = spawn("flock", [path, "sh", "-c", "echo locked; exec cat"], {
    stdio: ["pipe", "pipe", "ignore"],
  });
  const closed = Promise.withResolvers<void>();
  const locked = Promise.withResolvers<void>();
  child.on("close", () => {
    closed.resolve();
    locked.reject(signal?.aborted ? signal.reason : new Error(`Cannot lock "${path}"`));
  });
  child.on("error", (error) => {
    closed.resolve();
    locked.reject(error);
  });
  child.stdout.once("data", () => locked.resolve());
  function onAbort(): void {
    child.kill("SIGTERM");
  }
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    await locked.promise;
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
  return {
    async [Symbol.asyncDispose]() {
      child.stdin.end();
      await closed.promise;
    },
  };
}
