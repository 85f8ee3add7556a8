import { type WaitOptions, watchDeadline } from "../deadline.ts";
import type { AgentError } from "../errors.ts";
import type { WorkerConnection } from "./connection.ts";
import type { WorkerType } from "./constants.ts";
import { asWorkerError, WorkerError } from "./errors.ts";
import type { GuestMessage } from "./guest-messages.ts";

type Answer<T extends GuestMessage["type"]> = Extract<GuestMessage, { type: T }>;

/** The guest's refusal as an error. */
export function refused(what: string, message: Answer<"ERROR">): WorkerError<"AGENT_REFUSED"> {
  return new WorkerError("AGENT_REFUSED", `${what} was refused: ${message.message}`, {
    remote: message.code,
    workerStack: message.stack,
  });
}

/** As the agent's `watchDeadline`, with this protocol's errors. */
export function watchWait(
  what: string,
  options: WaitOptions,
  onEnd: (error: WorkerError<AgentError["code"]>) => void,
): Disposable {
  try {
    return watchDeadline(what, options, (error) => onEnd(asWorkerError(error)));
  } catch (error) {
    throw asWorkerError(error);
  }
}

/** Sends one message and waits for its one answer. An answer after the deadline is dropped. */
export async function ask<T extends GuestMessage["type"]>(
  connection: WorkerConnection,
  type: WorkerType,
  fields: Record<string, unknown> | undefined,
  expected: T,
  options: WaitOptions,
): Promise<Answer<T>> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer<T>>();
  const what = `${type} to the worker`;
  let id = 0;
  const finish = (settle: () => void) => {
    deadline[Symbol.dispose]();
    connection.release(id);
    settle();
  };
  const deadline = watchWait(what, options, (error) => finish(() => reject(error)));
  try {
    id = connection.open({
      onMessage(message) {
        if (message.type === expected) finish(() => resolve(message as Answer<T>));
        else if (message.type === "ERROR") finish(() => reject(refused(what, message)));
        else throw new WorkerError("AGENT_PROTOCOL", `The guest answered ${type} with ${message.type}`);
      },
      onClose: (error) => finish(() => reject(error)),
    });
    connection.send(type, id, fields);
  } catch (error) {
    finish(() => reject(error));
  }
  return await promise;
}
