import type { Socket } from "node:net";
import { codeOf, FlurryError } from "../../../errors/errors.ts";
import { WorkerClient, type WorkerRequest } from "../../../guest-agent/protocol/worker/mod.ts";
import type { WorkerBundle } from "../../../guest-agent/worker-host/bundle.ts";
import type { BootedVm } from "../../fork/boot.ts";
import { type OpenParentOptions, openParent, type ParentOrigin } from "../../fork/open-parent.ts";
import type { Parent } from "../../fork/parent.ts";
import { atRest } from "./at-rest.ts";
import { GUEST_BUN, GUEST_WORKER_HOST } from "./js-image.ts";
import { DEATH_NOTE, deathOf, OUT_OF_MEMORY } from "./worker-death.ts";

const GUEST_BUNDLE = "/opt/flurry/worker.mjs";
/** What Bun itself writes, such as the reason of its end. */
const GUEST_LOG = "/run/worker-host.log";
/** Milliseconds for the worker-host to be there: Bun starts in seconds where the CPU is emulated. */
const HELLO_MS = 120_000;

// Waits for the worker-host and ends the VM with it, which is how the host hears of it. The kernel's log goes
// to the console at once, while what is written to the console itself might never leave.
const WATCH = `
(echo 1000 >/proc/self/oom_score_adj; exec "$@")
status=$?
exec 3>&-
echo "<3>${DEATH_NOTE} $status" >/dev/kmsg
tail -n 5 ${GUEST_LOG} | cut -c 1-500 | while IFS= read -r line; do echo "<3>$line" >/dev/kmsg; done
echo b >/proc/sysrq-trigger`;

/**
 * JavaScriptCore compiles what has run often. A child inherits how often it has run, but neither a compiler
 * that works nor one that is warm, so that it would compile in its first requests what the parent had
 * nearly run often enough. These thresholds are 4 and 5 times the usual ones: what is worth compiling is
 * compiled all the same.
 */
const JIT = Object.entries({
  thresholdForJITAfterWarmUp: 2000,
  thresholdForJITSoon: 400,
  thresholdForOptimizeAfterWarmUp: 5000,
  thresholdForOptimizeAfterLongWarmUp: 5000,
  thresholdForOptimizeSoon: 5000,
})
  .map(([name, value]) => `BUN_JSC_${name}=${value}`)
  .join(" ");

// The port has no name in /dev: what knows its name is sysfs. The worker-host outlives the command that
// starts it. Reads of the port and of the fork hook (descriptor 3) and a write each block a thread of Bun's pool,
// which has two on one CPU.
// min_ttl_ms: a guest that lacks memory kills its worker when it cannot keep what it has used within the
// last second, where it would else spend half a minute on reading its programs from the disk again and
// again (Linux, Documentation/admin-guide/mm/multigen_lru.rst, "Thrashing prevention").
const START = `
echo 1000 >/sys/kernel/mm/lru_gen/min_ttl_ms
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = flurry.worker ] || continue
  export HOME=/root UV_THREADPOOL_SIZE=5 BUN_ENABLE_CRASH_REPORTING=0 ${JIT}
  setsid /bin/sh -c "$1" sh "$2" "$3" "/dev/\${port##*/}" "$4" </dev/null >${GUEST_LOG} 2>&1 &
  exit 0
done
echo "this VM has no port for a worker-host" >&2
exit 1`;

export interface JsParentOptions extends Omit<OpenParentOptions, "preparation" | "workerPort" | "files"> {
  /** For messages. */
  name: string;
  bundle: WorkerBundle;
  /** Requests that the parent answers before it is frozen, so that its children find all of it warm. */
  warmUpRequests?: readonly WorkerRequest[] | undefined;
  /** Whether it must have a `scheduled()`. @default false */
  isScheduled?: boolean | undefined;
}

/**
 * A frozen parent in which a JS worker is loaded, set up and warm.
 *
 * @throws FlurryError as `openParent`; WorkerError AGENT_REFUSED when the worker does not load or set up,
 * with its stack; WORKER_LOAD_FAILED when it lacks `scheduled()`; TASK_FAILED when it ends meanwhile, with the
 * reason
 */
export async function openJsParent(
  options: JsParentOptions,
): Promise<{ parent: Parent; origin: ParentOrigin }> {
  const { bundle, name, warmUpRequests = [], isScheduled = false } = options;
  const worker = { name, warmUpRequests, isScheduled };
  return await openParent({
    ...options,
    workerPort: true,
    files: [{ path: GUEST_BUNDLE, data: Buffer.from(bundle.code), mode: 0o644 }],
    preparation: {
      key: ["js", START, WATCH, name, JSON.stringify(warmUpRequests), ...(isScheduled ? ["scheduled"] : [])],
      prepare: (vm, signal) => prepareWorker(vm, worker, signal),
    },
  });
}

/** Starts the worker-host in a VM where the bundle lies. @throws FlurryError BOOT_FAILED */
async function startWorkerHost(vm: BootedVm, signal: AbortSignal | undefined): Promise<Socket> {
  const socket = vm.qemu.workerSocket;
  if (!socket)
    throw new FlurryError("INTERNAL", "A JS worker was to be loaded in a VM without a port for it");
  const argv = ["/bin/sh", "-c", START, "sh", WATCH, GUEST_BUN, GUEST_WORKER_HOST, GUEST_BUNDLE];
  const started = await vm.agent.run(argv, { hook: true, signal });
  if (started.code !== 0)
    throw new FlurryError("BOOT_FAILED", `Cannot start the worker-host: ${started.stderr}`);
  return socket;
}

/**
 * Loads a worker in a VM that was booted for it alone, as without forks; serves for comparison.
 *
 * @throws as `openJsParent`
 */
export async function loadColdWorker(
  vm: BootedVm,
  bundle: WorkerBundle,
  signal?: AbortSignal,
): Promise<WorkerClient> {
  await vm.agent.putFile(GUEST_BUNDLE, Buffer.from(bundle.code), { signal });
  const client = WorkerClient.over(await startWorkerHost(vm, signal), { name: "the worker" });
  try {
    await client.hello({ timeoutMs: HELLO_MS, signal });
    await client.load({ name: "worker" }, { signal });
    return client;
  } catch (error) {
    await client[Symbol.asyncDispose]();
    throw error;
  }
}

/** What is loaded. */
type LoadedWorker = Required<Pick<JsParentOptions, "name" | "warmUpRequests" | "isScheduled">>;

/** Starts the worker-host in a VM, has it load the worker, and brings both to rest. */
async function prepareWorker(
  vm: BootedVm,
  worker: LoadedWorker,
  signal: AbortSignal | undefined,
): Promise<void> {
  await loadWorker(vm, worker, signal);
  // Not before the port is let go: the worker-host has things to put in order then.
  await atRest(vm.qemu.pid, signal);
}

async function loadWorker(
  vm: BootedVm,
  { name, warmUpRequests, isScheduled }: LoadedWorker,
  signal: AbortSignal | undefined,
): Promise<void> {
  const socket = await startWorkerHost(vm, signal);
  let exit: string | undefined;
  await using client = WorkerClient.over(socket, {
    name: `the worker ${name}`,
    onFault: (fault) => {
      if (fault.kind === "exit") exit ??= fault.message;
    },
  });
  try {
    await client.hello({ timeoutMs: HELLO_MS, signal });
    const { handlers } = await client.load({ name }, { signal });
    if (isScheduled && !handlers.includes("scheduled")) throw notScheduled(name, handlers);
    await client.warm(warmUpRequests, { signal });
    await client.quiesce({ signal });
  } catch (error) {
    throw await loadError(error, name, vm);
  }
  // Children of it would refuse every request.
  if (exit) throw new FlurryError("TASK_FAILED", `Cannot load the worker "${name}": ${exit}`);
}

function notScheduled(name: string, handlers: readonly string[]): FlurryError {
  const have = handlers.map((handler) => `${handler}()`).join(", ");
  const message = `${name} does not load: it has crons, but no scheduled(); it has ${have}`;
  return new FlurryError("WORKER_LOAD_FAILED", message, {
    hint: "export default { scheduled(event, env, ctx) { … } }, or take its crons away",
  });
}

/** Puts the end of the worker, or of its VM, in place of the end of its channel. */
async function loadError(error: unknown, name: string, { qemu, profile }: BootedVm): Promise<unknown> {
  if (codeOf(error) !== "AGENT_CLOSED") return error;
  const death = qemu.exitError(await qemu.exited);
  if (death.code === "NO_SPACE") return death;
  await qemu.silent;
  const words = qemu.consoleTail();
  const reason = deathOf(words) ?? `its VM has ended. Its console ends with:\n${words.slice(-2000)}`;
  return new FlurryError("TASK_FAILED", `Cannot load the worker "${name}": ${reason}`, {
    cause: error,
    ...(reason === OUT_OF_MEMORY && { hint: `give it more memory than ${profile.memMiB} MiB` }),
  });
}
