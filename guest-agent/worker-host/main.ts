import { captureOutput } from "./capture.ts";
import { DevicePort } from "./device-port.ts";
import { captureFailures } from "./failures.ts";
import { shimFetch } from "./fetch.ts";
import { WorkerHost } from "./host.ts";
import { loadWorker } from "./load.ts";
import { OutboundCalls } from "./outbound-calls.ts";
import { Records } from "./records.ts";
import { rehearse } from "./rehearse.ts";
import { renew } from "./renew.ts";
import { shimRequest } from "./request-shim.ts";
import { shimResponse } from "./response-shim.ts";
import type { WorkerHandlers } from "./shape.ts";
import { SocketPort } from "./socket-port.ts";

/**
 * The program that runs a worker inside a guest:
 *
 *     bun worker-host.js <port> [<bundle>]
 *
 * `<port>` is the virtio-serial port's device, or `unix:<path>` for a socket to listen on; `<bundle>` is
 * what a LOAD without `entry` loads. It says `listening` on stdout once, then nothing: what the worker
 * writes goes to the host. On a device it needs `UV_THREADPOOL_SIZE=4` or more in its environment: Bun
 * has two threads on a machine with one CPU, and a read and a write of the port may hold one each.
 */
async function main(): Promise<void> {
  const [name, entry] = process.argv.slice(2);
  if (name === undefined) throw new Error("Usage: worker-host <port> [<bundle>]");
  const records = new Records();
  const port = name.startsWith("unix:")
    ? await SocketPort.listen(name.slice("unix:".length))
    : await DevicePort.open(name);
  const calls = new OutboundCalls();
  const host = new WorkerHost(port, { records, calls, entry, load, renew, exit: exiter() });
  process.stdout.write("listening\n");
  captureOutput(records);
  captureFailures(records, (reason) => host.onExit(reason));
  shimResponse();
  shimRequest();
  shimFetch(calls);
}

async function load(entry: string): Promise<WorkerHandlers> {
  // Before any code of the worker runs, which may change what it likes.
  await rehearse(renew);
  return await loadWorker(entry);
}

/** Ends the process by its own means, whatever is put in their place later. */
function exiter(): (code: number, why?: string) => void {
  const exit = process.exit;
  const write = process.stderr.write.bind(process.stderr);
  return (code, why) => {
    if (why !== undefined) write(`flurry worker-host: ${why}\n`);
    exit(code);
  };
}

main().catch((error) => {
  process.stderr.write(`flurry worker-host: ${String(error)}\n`);
  process.exitCode = 1;
});
