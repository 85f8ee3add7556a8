import { connect, type Socket } from "node:net";
import { FlurryError } from "../../errors/errors.ts";

/**
 * Connects to the unix socket on which a child's QEMU waits.
 *
 * @throws FlurryError MEMSERVER_FAILED, ABORTED
 */
export async function dial(path: string, signal?: AbortSignal): Promise<Socket> {
  const socket = connect(path);
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  const onAbort = () =>
    reject(new FlurryError("ABORTED", "Aborted by the caller", { cause: signal?.reason }));
  const onError = (cause: Error) =>
    reject(
      new FlurryError("MEMSERVER_FAILED", `Cannot connect to a child at "${path}": ${cause.message}`, {
        cause,
      }),
    );
  socket.once("connect", resolve);
  socket.once("error", onError);
  signal?.addEventListener("abort", onAbort, { once: true });
  if (signal?.aborted) onAbort();
  try {
    await promise;
    return socket;
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    socket.off("error", onError);
    signal?.removeEventListener("abort", onAbort);
  }
}
