import { isForking } from "../bindings/src/vm.ts";
import { offerVmModule } from "../bindings/src/vm-module.ts";
import { captureOutput } from "./capture.ts";
import { DevicePort } from "./device-port.ts";
import { captureFailures } from "./failures.ts";
import { shimFetch } from "./fetch.ts";
import { joinForks } from "./fork-hook.ts";
import { WorkerHost } from "./host.ts";
import { watchDraws } from "./in-flight.ts";
import { loadWorker } from "./load.ts";
import { offerOnFork } from "./on-fork.ts";
import { OutboundCalls } from "./outbound-calls.ts";
import { watchPools } from "./pools.ts";
import { Records } from "./records.ts";
import { rehearse } from "./rehearse.ts";
import { prepareRenewal, renew } from "./renew.ts";
import { shimRequest } from "./request-shim.ts";
import { shimResponse } from "./response-shim.ts";
import type { WorkerHandlers } from "./shape.ts";
import { SocketPort } from "./socket-port.ts";
import { liveThreads, watchThreads } from "./threads.ts";

/**
 * The program that runs a worker inside a guest:
 *
 *     bun worker-host.js <port> [<bundle>]
 *
 * `<port>` is the virtio-serial port's device, or `unix:<path>` for a socket to listen on; `<bundle>` is
 * what a LOAD without `entry` loads. It says `listening` on stdout once, then nothing: what the worker
 * writes goes to the host. In FLURRY_FORK_FD is the descriptor of its fork hook, if it has one. On a device it
 * needs `UV_THREADPOOL_SIZE=5` or more in its environment: Bun has two threads on a machine with one CPU, and
 * a read and a write of the port and a read of the hook may hold one each.
 */
async function main(exit: Exit): Promise<void> {
  const [name, entry] = process.argv.slice(2);
  if (name === undefined) throw new Error("Usage: worker-host <port> [<bundle>]");
  const records = new Records();
  const port = name.startsWith("unix:")
    ? await SocketPort.listen(name.slice("unix:".length))
    : await DevicePort.open(name);
  const calls = new OutboundCalls();
  const hook = takeHook();
  const host = new WorkerHost(port, { records, calls, entry, load, exit });
  if (hook !== undefined) {
    joinForks({
      fd: hook,
      name: "worker-host",
      prepare: () => {
        const reason = busyReason(host);
        if (reason === undefined) prepareRenewal();
        return reason;
      },
      renew: () => {
        if (isForking()) calls.leave();
        return renew();
      },
      onFailed: (error) => exit(1, `Cannot take part in forks: ${String(error)}`),
    });
  }
  process.stdout.write("listening\n");
  captureOutput(records);
  captureFailures(records, (reason) => host.onExit(reason));
  shimResponse();
  shimRequest();
  shimFetch(calls);
  watchPools();
  watchDraws();
  watchThreads();
  offerOnFork();
  offerVmModule();
}

/** Descriptor of the fork hook. The worker need not know of it. */
function takeHook(): number | undefined {
  const fd = process.env.FLURRY_FORK_FD;
  delete process.env.FLURRY_FORK_FD;
  return fd === undefined ? undefined : Number(fd);
}

function busyReason(host: WorkerHost): string | undefined {
  const threads = liveThreads();
  // What a worker has under way when it forks its own VM goes on in it, and in its children.
  if (threads === 0) return isForking() ? undefined : host.busyReason;
  return `the worker has ${threads} threads, which cannot be forked: start them in onFork()`;
}

async function load(entry: string): Promise<WorkerHandlers> {
  // Before any code of the worker runs, which may change what it likes.
  await rehearse();
  return await loadWorker(entry);
}

type Exit = (code: number, why?: string) => void;

/** Ends the process by its own means, whatever is put in their place later. */
function exiter(): Exit {
  const exit = process.exit;
  const write = process.stderr.write.bind(process.stderr);
  return (code, why) => {
    if (why !== undefined) write(`flurry worker-host: ${why}\n`);
    exit(code);
  };
}

const exit = exiter();
main(exit).catch((error) => exit(1, String(error)));
