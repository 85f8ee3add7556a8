import { AsyncLocalStorage } from "node:async_hooks";

/** What the code that runs now works for. */
export interface RequestScope {
  requestId: string;
}

const scope = new AsyncLocalStorage<RequestScope>();

/** Calls `act`; what it starts, however long it takes, belongs to the request. */
export function runFor<T>(requestId: string, act: () => T): T {
  return scope.run({ requestId }, act);
}

/** The request or task that the code which runs now belongs to. */
export function currentRequestId(): string | undefined {
  return scope.getStore()?.requestId;
}
