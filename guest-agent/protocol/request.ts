import type { Connection } from "./connection.ts";
import type { messageTypes } from "./constants.ts";
import { refusal, type WaitOptions, watchDeadline } from "./deadline.ts";
import { AgentError } from "./errors.ts";
import type { GuestMessage } from "./messages.ts";

/** The message of one type. */
export type Answer<T extends GuestMessage["type"]> = Extract<GuestMessage, { type: T }>;

/** A message that asks for something. */
export type RequestType = keyof typeof messageTypes;

/** Sends one message and waits for its one answer. An answer after the deadline is dropped. */
export async function request<T extends GuestMessage["type"]>(
  connection: Connection,
  type: RequestType,
  fields: Record<string, unknown> | undefined,
  expected: T,
  options: WaitOptions,
): Promise<Answer<T>> {
  const { promise, resolve, reject } = Promise.withResolvers<Answer<T>>();
  const what = `${type} to the agent`;
  const deadline = watchDeadline(what, options, (error) => finish(() => reject(error)));
  const finish = (settle: () => void) => {
    deadline[Symbol.dispose]();
    connection.release(id);
    settle();
  };
  const id = opened(connection, deadline, {
    onMessage(message) {
      if (message.type === expected) finish(() => resolve(message as Answer<T>));
      else if (message.type === "ERROR") finish(() => reject(refusal(what, message)));
      else throw new AgentError("AGENT_PROTOCOL", `The guest answered ${type} with ${message.type}`);
    },
    onClose: (error) => finish(() => reject(error)),
  });
  try {
    connection.send(type, id, fields);
  } catch (error) {
    finish(() => reject(error));
  }
  return await promise;
}

function opened(
  connection: Connection,
  deadline: Disposable,
  handler: Parameters<Connection["open"]>[0],
): number {
  try {
    return connection.open(handler);
  } catch (error) {
    deadline[Symbol.dispose]();
    throw error;
  }
}
