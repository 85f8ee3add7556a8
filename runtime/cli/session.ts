import { Admission, type FamilyAdmission, hostLimits } from "../fork/admission.ts";
import { Memserver } from "../fork/memserver.ts";
import {
  type OpenParentOptions,
  openParent,
  type ParentOrigin,
  type ParentProgress,
} from "../fork/open-parent.ts";
import type { Parent } from "../fork/parent.ts";
import { memserverKeys } from "../home.ts";
import { stepText } from "../workers/steps.ts";
import { formatMs } from "./format.ts";
import type { Output } from "./output.ts";

/** A parent with the admission of its children: what every command that forks begins with. */
export interface ForkSession extends AsyncDisposable {
  parent: Parent;
  origin: ParentOrigin;
  admission: FamilyAdmission;
}

export interface ForkSessionOptions extends Omit<OpenParentOptions, "onProgress" | "memserver"> {
  output: Output;
  /** Children at the same time; fewer if the host has no room. @default what the host can take */
  children?: number | undefined;
}

/** Opens the parent of an image and shows on the way what happens. */
export async function openSession(options: ForkSessionOptions): Promise<ForkSession> {
  const { output, host } = options;
  using progress = output.progress("Parent");
  await using stack = new AsyncDisposableStack();
  const memserver = stack.use(new Memserver({ host, keys: memserverKeys(host.home) }));
  const opened = await openParent({
    ...options,
    memserver,
    onProgress: (event) => {
      const text = progressText(event);
      if (text !== undefined) progress.describe(text);
    },
  });
  progress.finish(originText(opened.origin));
  const { parent, origin } = opened;
  stack.use(parent);
  const owned = stack.move();
  const limits = hostLimits(parent.profile.accel, host.cores);
  const slots = options.children ?? limits.slots;
  const admission = new Admission({ ...limits, slots }).family(parent.descriptor.ram.bytes);
  return { parent, origin, admission, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

/** Says in words what a parent is doing; more of a boot than others show. Undefined for what is no news. */
function progressText(event: ParentProgress): string | undefined {
  switch (event.step) {
    case "boot":
      return `booting (${event.accel.accel}: ${event.accel.reason})`;
    case "console":
      return event.line.trim() === "" ? undefined : `booting: ${event.line.trim()}`;
    default:
      return stepText(event);
  }
}

function originText(origin: ParentOrigin): string {
  const { accel } = origin.accel;
  if (origin.holders) {
    return `Parent: frozen by ${origin.holders.join(", ")}, its memory comes as it is needed (${accel})`;
  }
  if (origin.cached) return `Parent: frozen earlier, taken from disk without a boot (${accel})`;
  const parts = [
    `booted in ${formatMs(origin.bootMs ?? 0)}`,
    `warmed up in ${formatMs(origin.warmUpMs ?? 0)}`,
    `frozen in ${formatMs(origin.pauseMs ?? 0)}`,
    `kept on disk in ${formatMs(origin.keepMs ?? 0)}`,
  ];
  return `Parent: ${parts.join(", ")} (${accel})`;
}
