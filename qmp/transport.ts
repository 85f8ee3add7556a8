import { createConnection, type Socket } from "node:net";
import { QmpError } from "./errors.ts";

/** Where a transport delivers. `closed` comes once and last. */
export interface TransportSink {
  data(chunk: Uint8Array): void;
  /** The other side is gone; `error` is what the socket said, if anything. */
  closed(error: Error | undefined): void;
}

/** A byte stream to one QEMU monitor. */
export interface QmpTransport {
  /** Begins delivery; called once. */
  start(sink: TransportSink): void;
  write(text: string): void;
  /** Drops the connection at once. Calling it again does nothing. */
  close(): void;
}

/** Takes over a connected socket, for instance one that QEMU opened to a listener of ours. */
export function socketTransport(socket: Socket): QmpTransport {
  return {
    start(sink) {
      let failure: Error | undefined;
      let told = false;
      const tell = (): void => {
        if (told) return;
        told = true;
        sink.closed(failure);
      };
      socket.on("data", (chunk: Uint8Array) => sink.data(chunk));
      socket.on("error", (error: Error) => {
        failure = error;
        tell();
      });
      // QEMU never shuts down one direction only: its end of stream is its end.
      socket.on("end", tell);
      socket.on("close", tell);
      // A listener may have paused it, so that the greeting waits for us.
      socket.resume();
      if (socket.destroyed || socket.readableEnded) queueMicrotask(tell);
    },
    write(text) {
      socket.write(text);
    },
    close() {
      socket.destroy();
    },
  };
}

/**
 * Connects to a unix socket that QEMU serves.
 *
 * @param path Path of the socket.
 * @throws QmpError QMP_CLOSED when nobody listens there, ABORTED when the signal fires first.
 */
export function dial(path: string, signal?: AbortSignal): Promise<Socket> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) {
      reject(aborted(path, signal));
      return;
    }
    const socket = createConnection({ path });
    const settle = (): void => {
      socket.off("connect", onConnect);
      socket.off("error", onError);
      signal?.removeEventListener("abort", onAbort);
    };
    const onConnect = (): void => {
      settle();
      resolve(socket);
    };
    const onError = (error: Error): void => {
      settle();
      socket.destroy();
      const message = `Cannot connect to QMP socket "${path}": ${error.message}`;
      reject(new QmpError("QMP_CLOSED", message, { cause: error }));
    };
    const onAbort = (): void => {
      settle();
      // A socket that is destroyed while connecting may still report an error.
      socket.on("error", () => undefined);
      socket.destroy();
      reject(aborted(path, signal));
    };
    socket.on("connect", onConnect);
    socket.on("error", onError);
    signal?.addEventListener("abort", onAbort);
  });
}

function aborted(path: string, signal: AbortSignal | undefined): QmpError {
  return new QmpError("ABORTED", `Connecting to QMP socket "${path}" was aborted`, { cause: signal?.reason });
}
