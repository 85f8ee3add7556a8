import { FlurryError } from "../../errors/errors.ts";

const controller = new AbortController();

/** Aborted by the first SIGINT, SIGTERM or SIGHUP. Every command passes it to all that waits. */
export function cliSignal(): AbortSignal {
  return controller.signal;
}

/**
 * The first signal asks the command to stop and clean up; the second ends the process at once. What
 * is then left behind is reaped at the next start.
 */
export function listenForSignals(): void {
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(name, () => {
      if (controller.signal.aborted) process.exit(130);
      controller.abort(new FlurryError("ABORTED", `Interrupted by ${name}`));
    });
  }
}
