import { createHash } from "node:crypto";
import { FlurryError } from "../../errors/errors.ts";
import { WorkerError } from "../../guest-agent/protocol/worker/mod.ts";
import { type GuestFile, imageOf, isModule, type ModuleSpec, type WorkerSpec } from "../api/mod.ts";
import type { Memserver } from "../fork/memserver.ts";
import { type OpenParentOptions, openParent, type ParentFile } from "../fork/open-parent.ts";
import type { Parent } from "../fork/parent.ts";
import { taskWarmUp } from "../jobs/task.ts";
import type { Host } from "../vm/host.ts";
import type { Accelerator } from "../vm/profile.ts";
import { buildText, findImage } from "./images.ts";
import { jsImage } from "./js/js-image.ts";
import { openJsParent } from "./js/js-parent.ts";
import { stepText } from "./steps.ts";

type Progress = Parameters<NonNullable<OpenParentOptions["onProgress"]>>[0];

export interface FamilyMaking {
  host: Host;
  memserver: Memserver;
  spec: WorkerSpec;
  warmUpTimeoutMs: number;
  /** Waits for a place to boot. */
  place: () => Promise<Disposable>;
  /** Not the one on disk. */
  fresh: boolean;
  peers: readonly string[] | undefined;
  /** Tells in words what is being done. */
  onStep: (text: string | undefined) => void;
  onPeersFailed: (event: Extract<Progress, { step: "peers-failed" }>) => void;
  signal: AbortSignal;
}

/** A parent, what it runs under, and the hash of the image that it was made of. */
export interface MadeParent {
  parent: Parent;
  accel: Accelerator;
  image: string;
}

/** Makes the parent of a family, or finds it on disk or on another host. @throws FlurryError as `openParent`; WORKER_LOAD_FAILED */
export async function makeParent(making: FamilyMaking): Promise<MadeParent> {
  const { host, spec, onStep, signal } = making;
  const image = isModule(spec)
    ? await jsImage({
        home: host.home,
        onProgress: (progress) => onStep(buildText(imageOf(spec), progress)),
        signal,
      })
    : await findImage(imageOf(spec), { home: host.home, onStep, signal });
  onStep("waiting for other preparations");
  using _place = await making.place();
  const options: OpenParentOptions = {
    ...{ host, image, signal },
    memMiB: spec.memoryMiB,
    cpus: spec.cpus,
    files: spec.files.map(parentFile),
    warmUpTimeoutMs: making.warmUpTimeoutMs,
    fresh: making.fresh,
    memory: spec.memory,
    memserver: making.memserver,
    peers: making.peers,
    onProgress: (event) => {
      onStep(stepText(event));
      if (event.step === "peers-failed") making.onPeersFailed(event);
    },
  };
  const { parent, origin } = isModule(spec)
    ? await openModuleParent(options, spec)
    : await openParent({ ...options, warmUp: taskWarmUp(spec.warmUp) });
  return { parent, accel: origin.accel.accel, image: image.hash };
}

async function openModuleParent(options: OpenParentOptions, { module, crons }: ModuleSpec) {
  const { code, entry, warmUp } = module;
  const bundle = {
    code,
    bytes: Buffer.byteLength(code),
    hash: createHash("sha256").update(code).digest("hex"),
  };
  const warmUpRequests = warmUp.map(({ method, path, headers, body }) => ({
    ...{ method, url: `http://localhost${path}`, headers: Object.entries(headers) },
    ...(body !== undefined && { body: new TextEncoder().encode(body) }),
  }));
  try {
    const isScheduled = crons !== undefined && crons.length > 0;
    return await openJsParent({ ...options, name: entry, bundle, warmUpRequests, isScheduled });
  } catch (error) {
    if (!(error instanceof WorkerError) || error.code === "ABORTED") throw error;
    const stack = error.workerStack ? `\n${error.workerStack}` : "";
    throw new FlurryError("WORKER_LOAD_FAILED", `${entry} does not load: ${error.message}${stack}`, {
      cause: error,
    });
  }
}

function parentFile({ path, text, base64, mode }: GuestFile): ParentFile {
  return { path, mode, data: text === undefined ? Buffer.from(base64 ?? "", "base64") : Buffer.from(text) };
}
