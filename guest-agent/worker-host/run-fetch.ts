import type { HeaderList } from "../protocol/worker/headers.ts";
import { type AnswerHead, answerHead, problemAnswer } from "./answers.ts";
import { bytesOf } from "./chunks.ts";
import type { Operation } from "./operation.ts";
import type { Runner } from "./runner.ts";

/** A request as it came. */
export interface RequestMessage {
  requestId: string;
  method: string;
  url: string;
  headers: HeaderList;
}

/** Answers one request. Never rejects: whatever the worker does has an answer. */
export async function runFetch(runner: Runner, operation: Operation, message: RequestMessage): Promise<void> {
  const { requestId, method } = message;
  const { context, waits } = runner.begin(operation, requestId);
  let head: AnswerHead;
  try {
    const request = requestOf(operation, message);
    if (isUpgrade(request)) {
      head = answerHead(problemAnswer(501, "UPGRADE_UNSUPPORTED", requestId), method);
    } else {
      head = answerHead(await runner.handlers.fetch?.(request, runner.env, context), method);
    }
  } catch (error) {
    // Who went away brought this about himself, more often than not, and gets no answer in any case.
    if (!operation.signal.aborted) runner.logFailure(error);
    head = answerHead(problemAnswer(500, "WORKER_FAILED", requestId), method);
  }
  await sendAnswer(runner, operation, head);
  operation.done(await waits.settle());
}

async function sendAnswer(runner: Runner, operation: Operation, head: AnswerHead): Promise<void> {
  const { status, headers, body } = head;
  if (operation.signal.aborted) {
    await body?.cancel(operation.signal.reason).catch(() => undefined); // nobody is there to be told
    return;
  }
  if (body === null) {
    operation.send("RESPONSE", { status, headers });
    operation.dropInput();
    return;
  }
  const reader = body.getReader();
  operation.whenCancelled((reason) => void reader.cancel(reason).catch(() => undefined)); // as above
  operation.send("RESPONSE", { status, headers, body: true });
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      await operation.write(bytesOf(value));
    }
    operation.end();
  } catch (error) {
    if (operation.signal.aborted) return;
    runner.logFailure(error);
    operation.breakOff("the worker's response failed while it was sent");
    await reader.cancel(error).catch(() => undefined); // it has failed already, and is in the log
  }
}

function requestOf(operation: Operation, message: RequestMessage): Request {
  const { method, url, headers } = message;
  const init: RequestInit = { method, headers: headers as [string, string][], signal: operation.signal };
  const body = operation.input;
  return new Request(url, body === undefined ? init : ({ ...init, body, duplex: "half" } as RequestInit));
}

function isUpgrade(request: Request): boolean {
  return request.headers.get("upgrade")?.toLowerCase() === "websocket";
}
