import { FlurryError } from "../../../errors/errors.ts";
import type { Image } from "../../../guest-agent/image/mod.ts";
import { WorkerClient, type WorkerRequest } from "../../../guest-agent/protocol/worker/mod.ts";
import type { WorkerBundle } from "../../../guest-agent/worker-host/bundle.ts";
import type { BootedVm } from "../../fork/boot.ts";
import { type OpenParentOptions, openParent, type ParentOrigin } from "../../fork/open-parent.ts";
import type { Parent } from "../../fork/parent.ts";
import { GUEST_BUN, GUEST_WORKER_HOST } from "./js-image.ts";

const GUEST_BUNDLE = "/opt/flurry/worker.mjs";
/** Milliseconds for the worker-host to be there: Bun starts in seconds where the CPU is emulated. */
const HELLO_MS = 120_000;

// The port has no name in /dev: what knows its name is sysfs. The worker-host outlives the command that
// starts it. A read and a write of the port each block a thread of Bun's pool, which has two on one CPU.
const START = `
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = flurry.worker ] || continue
  HOME=/root UV_THREADPOOL_SIZE=4 setsid "$1" "$2" "/dev/\${port##*/}" "$3" </dev/null >/run/worker-host.log 2>&1 &
  exit 0
done
echo "this VM has no port for a worker-host" >&2
exit 1`;

export interface JsParentOptions extends Omit<OpenParentOptions, "preparation" | "workerPort" | "files"> {
  /** From `jsImage`. */
  image: Image;
  /** For messages. */
  name: string;
  bundle: WorkerBundle;
  /** Requests that the parent answers before it is frozen, so that its children find all of it warm. */
  warmUpRequests?: readonly WorkerRequest[] | undefined;
}

/**
 * A frozen parent in which a JS worker is loaded, set up and warm.
 *
 * @throws FlurryError as `openParent`; WorkerError AGENT_REFUSED when the worker does not load or set up,
 * with its stack
 */
export async function openJsParent(
  options: JsParentOptions,
): Promise<{ parent: Parent; origin: ParentOrigin }> {
  const { bundle, name, warmUpRequests = [] } = options;
  return await openParent({
    ...options,
    workerPort: true,
    files: [{ path: GUEST_BUNDLE, data: Buffer.from(bundle.code), mode: 0o644 }],
    preparation: {
      key: ["js", START, name, JSON.stringify(warmUpRequests)],
      prepare: (vm, signal) => loadWorker(vm, name, warmUpRequests, signal),
    },
  });
}

/** Starts the worker-host in a VM, has it load the worker, and brings its port to rest. */
async function loadWorker(
  vm: BootedVm,
  name: string,
  requests: readonly WorkerRequest[],
  signal: AbortSignal | undefined,
): Promise<void> {
  const socket = vm.qemu.workerSocket;
  if (!socket)
    throw new FlurryError("INTERNAL", "A JS worker was to be loaded in a VM without a port for it");
  const argv = ["/bin/sh", "-c", START, "sh", GUEST_BUN, GUEST_WORKER_HOST, GUEST_BUNDLE];
  const started = await vm.agent.run(argv, { signal });
  if (started.code !== 0)
    throw new FlurryError("BOOT_FAILED", `Cannot start the worker-host: ${started.stderr}`);
  await using client = WorkerClient.over(socket, { name: `the worker ${name}` });
  await client.hello({ timeoutMs: HELLO_MS, signal });
  await client.load({ name }, { signal });
  await client.warm(requests, { signal });
  await client.quiesce({ signal });
}
