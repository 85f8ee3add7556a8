import { getLogger } from "@logtape/logtape";
import { describeError, FlurryError } from "../../../errors/errors.ts";
import { type Clock, systemClock } from "../../clock.ts";
import { SetAsides } from "../../jobs/set-aside.ts";
import type { ChildLike, ScalingPorts } from "../scaling/ports.ts";

const logger = getLogger(["flurry", "workers"]);

/** Longest wait until it is tried again whether a worker can be forked: somebody waits for the answer. */
const LONGEST_WAIT_MS = 30_000;

export interface ForkGuardOptions {
  /** Of the worker. */
  name: string;
  clock?: Clock | undefined;
}

/**
 * Ports that fork no more when that has failed five times in a row: whoever needs a child is told so at
 * once. After a second one fork is tried, then after twice as long each time, up to 30 s; the first one that
 * works ends it.
 *
 * @returns ports that throw NOT_READY with the last reason and `retryAfterSeconds`
 */
export function guardForks<C extends ChildLike>(
  ports: ScalingPorts<C>,
  { name, clock = systemClock }: ForkGuardOptions,
): ScalingPorts<C> {
  const asides = new SetAsides({
    clock,
    host: { id: name, label: name },
    longestWaitMs: LONGEST_WAIT_MS,
    onChange: (change) => {
      if (change.change === "restored") logger.info("{name} can be forked again", { name });
      else logger.warn("Forks of {name} keep failing: {reason}", { name, reason: change.entry.reason });
    },
  });
  const isBlocked = () => asides.hostBlocked || asides.blockedFamilies().length > 0;
  const mustBeOpen = () => {
    if (!isBlocked()) return;
    const retryAfterSeconds = Math.max(1, Math.ceil((asides.nextMs() ?? 0) / 1000));
    throw new FlurryError("NOT_READY", `Forks of "${name}" keep failing: ${asides.list()[0]?.reason}`, {
      hint: `try again in ${retryAfterSeconds} s`,
      retryAfterSeconds,
    });
  };
  return {
    ...ports,
    admit: async (signal) => {
      mustBeOpen();
      return await ports.admit(signal);
    },
    admitAhead: () => (isBlocked() ? undefined : ports.admitAhead()),
    fork: async (signal, isAhead) => {
      mustBeOpen();
      const trial = asides.begin(name, name);
      try {
        const child = await ports.fork(signal, isAhead);
        trial.worked();
        return child;
      } catch (error) {
        const { code, message } = describeError(error);
        if (signal.aborted) trial.unknown();
        else trial.failed(code, message);
        throw error;
      }
    },
  };
}
