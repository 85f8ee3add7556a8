import { AgentError } from "./errors.ts";

/** How long to wait, and when to give up. */
export interface WaitOptions {
  /** Milliseconds; AGENT_TIMEOUT when they pass. */
  timeoutMs?: number | undefined;
  /** ABORTED when it fires. */
  signal?: AbortSignal | undefined;
}

/**
 * Calls `onEnd` at most once, with ABORTED or AGENT_TIMEOUT, unless disposed of before. Throws
 * ABORTED at once if the signal has fired already.
 */
export function watchDeadline(
  what: string,
  options: WaitOptions,
  onEnd: (error: AgentError) => void,
): Disposable {
  const { signal, timeoutMs } = options;
  const aborted = () => new AgentError("ABORTED", `${what} was aborted`, { cause: signal?.reason });
  if (signal?.aborted) throw aborted();
  const stop = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  };
  const onAbort = () => {
    stop();
    onEnd(aborted());
  };
  const onTimeout = () => {
    stop();
    onEnd(new AgentError("AGENT_TIMEOUT", `${what} took longer than ${timeoutMs} ms`));
  };
  const timer = timeoutMs === undefined ? undefined : setTimeout(onTimeout, timeoutMs);
  signal?.addEventListener("abort", onAbort);
  return { [Symbol.dispose]: stop };
}

/** An answer that was waited for and did not come as hoped: what the guest's refusal becomes. */
export function refusal(
  what: string,
  message: { code: string; errno: string | undefined; message: string },
): AgentError {
  return new AgentError("AGENT_REFUSED", `${what} was refused: ${message.message}`, {
    errno: message.errno,
    remote: message.code,
  });
}
