import { Admission, type FamilyAdmission, hostLimits } from "../fork/admission.ts";
import {
  type OpenParentOptions,
  openParent,
  type ParentOrigin,
  type ParentProgress,
} from "../fork/open-parent.ts";
import type { Parent } from "../fork/parent.ts";
import { formatMs } from "./format.ts";
import type { Output } from "./output.ts";

/** A parent with the admission of its children: what every command that forks begins with. */
export interface ForkSession extends AsyncDisposable {
  parent: Parent;
  origin: ParentOrigin;
  admission: FamilyAdmission;
}

export interface ForkSessionOptions extends Omit<OpenParentOptions, "onProgress"> {
  output: Output;
  /** Children at the same time; fewer if the host has no room. @default what the host can take */
  children?: number | undefined;
}

/** Opens the parent of an image and shows on the way what happens. */
export async function openSession(options: ForkSessionOptions): Promise<ForkSession> {
  const { output, host } = options;
  using progress = output.progress("Parent");
  const opened = await openParent({
    ...options,
    onProgress: (event) => {
      if (event.step !== "console" || event.line.trim() !== "") progress.describe(progressText(event));
    },
  });
  progress.finish(originText(opened.origin));
  const { parent, origin } = opened;
  const limits = hostLimits(parent.profile.accel, host.cores);
  const slots = options.children ?? limits.slots;
  const admission = new Admission({ ...limits, slots }).family(parent.descriptor.ram.bytes);
  return { parent, origin, admission, [Symbol.asyncDispose]: () => parent[Symbol.asyncDispose]() };
}

/** Says in words what a parent is doing. */
function progressText(event: ParentProgress): string {
  switch (event.step) {
    case "probe":
      return "trying whether guests boot under KVM (once on this machine)";
    case "boot":
      return `booting (${event.accel.accel}: ${event.accel.reason})`;
    case "console":
      return `booting: ${event.line.trim()}`;
    case "files":
      return "putting files in";
    case "warm-up":
      return "warming up";
    case "freeze":
      return "freezing";
    case "keep":
      return "keeping the frozen parent on disk";
    case "damaged":
      return `booting another one: ${event.reason}`;
    case "cached":
      return "found on disk";
  }
}

function originText(origin: ParentOrigin): string {
  const { accel } = origin.accel;
  if (origin.cached) return `Parent: frozen earlier, taken from disk without a boot (${accel})`;
  const parts = [
    `booted in ${formatMs(origin.bootMs ?? 0)}`,
    `warmed up in ${formatMs(origin.warmUpMs ?? 0)}`,
    `frozen in ${formatMs(origin.pauseMs ?? 0)}`,
    `kept on disk in ${formatMs(origin.keepMs ?? 0)}`,
  ];
  return `Parent: ${parts.join(", ")} (${accel})`;
}
