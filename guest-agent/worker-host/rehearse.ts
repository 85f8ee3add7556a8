import { setTimeout as sleep } from "node:timers/promises";
import { encodeData, encodeMessage, FrameReader } from "../protocol/codec.ts";
import { MARKER, streams } from "../protocol/constants.ts";
import { WORKER_PROTOCOL_VERSION, type WorkerType, workerTypes } from "../protocol/worker/constants.ts";
import { type GuestMessage, parseGuestMessage } from "../protocol/worker/guest-messages.ts";
import { rehearseForks } from "./fork-hook.ts";
import { WorkerHost } from "./host.ts";
import { getRandomValues } from "./native-random.ts";
import { OutboundCalls } from "./outbound-calls.ts";
import { rememberFilled } from "./pools.ts";
import type { Port, PortEvents } from "./port.ts";
import { Records } from "./records.ts";
import { compileRenewal, endRenewal, prepareRenewal, renew } from "./renew.ts";
import type { WorkerHandlers } from "./shape.ts";

const ROUNDS = 10;
/** After so many the renewal is compiled: a child does it in a sixth of the time, where the CPU is emulated. */
const FORK_ROUNDS = 300;
/** Milliseconds after which it is left alone: it may only save time. */
const PATIENCE_MS = 5000;

const handlers: WorkerHandlers = {
  shape: "object",
  fetch: async (request) =>
    request.body === null
      ? new Response("ok", { headers: { "x-rehearsal": "yes" } })
      : new Response(request.body),
  task: (input) => input,
};

/**
 * Has a worker host of its own, with a worker that does nothing, do what a child does first: learn that it
 * is a fork, and answer requests. Each function of a program costs most when it runs for the first time;
 * in a parent it does so before the fork, so that no child pays for it.
 */
export async function rehearse(): Promise<void> {
  const port = new Loopback();
  const records = new Records();
  const load = async () => handlers;
  const exit = () => undefined;
  new WorkerHost(port, { records, calls: new OutboundCalls(), entry: "", load, exit });
  compileRenewal();
  const pool = getRandomValues(new Uint8Array(256));
  rememberFilled([pool]);
  prepareRenewal();
  rehearseForks({ prepare: () => undefined, renew }, FORK_ROUNDS);
  endRenewal();
  const limit = new AbortController();
  const isOver = sleep(PATIENCE_MS, undefined, { signal: limit.signal });
  // What fails here fails where it matters, too, and is reported there.
  await Promise.race([play(port), isOver]).catch(() => undefined);
  limit.abort();
  port.hangUp();
}

async function play(port: Loopback): Promise<void> {
  const protocol = WORKER_PROTOCOL_VERSION;
  port.meet();
  await port.ask("LOAD", { protocol, name: "rehearsal" }, "LOADED");
  const vm = { id: "vm-000000000000", index: 0, generation: 0 };
  const headers = [
    ["host", "localhost"],
    ["user-agent", "flurry"],
    ["accept", "*/*"],
  ];
  const asked = { requestId: "rehearsal", url: "http://localhost/", headers };
  const body = new TextEncoder().encode('{"rehearsal":true}');
  for (let round = 0; round < ROUNDS; round++) {
    // As for a child: a new host, which says so.
    port.meet();
    await port.ask("FORKED", { protocol, vm, env: {}, secrets: {} }, "READY");
    await port.ask("REQUEST", { ...asked, method: "GET" }, "DONE");
    await port.ask("REQUEST", { ...asked, method: "POST", body: true }, "DONE", body);
    await port.ask("TASK", { requestId: "rehearsal" }, "DONE", body);
  }
}

/** A port whose host is here. */
class Loopback implements Port {
  #events: PortEvents | undefined;
  #reader = new FrameReader();
  #nextId = 1;
  #waiting: { id: number; type: GuestMessage["type"]; resolve: () => void } | undefined;

  start(events: PortEvents): void {
    this.#events = events;
  }

  write(bytes: Uint8Array): undefined {
    this.#reader.push(bytes, (payload) => {
      const { id, type } = parseGuestMessage(payload);
      if (id === this.#waiting?.id && type === this.#waiting.type) this.#waiting.resolve();
    });
  }

  forget(): void {
    this.#reader = new FrameReader();
  }

  /** Begins a session. */
  meet(): void {
    this.#events?.onBytes(MARKER);
  }

  hangUp(): void {
    this.#events?.onHangup();
  }

  /** Sends a message, and the body that belongs to it; waits for its last answer. */
  async ask(
    type: WorkerType,
    fields: Record<string, unknown>,
    answer: GuestMessage["type"],
    body?: Uint8Array,
  ): Promise<void> {
    const id = this.#nextId++;
    const { promise, resolve } = Promise.withResolvers<void>();
    this.#waiting = { id, type: answer, resolve };
    this.#events?.onBytes(encodeMessage(workerTypes[type], id, fields));
    if (body) {
      this.#events?.onBytes(encodeData(id, streams.IN, body));
      this.#events?.onBytes(encodeMessage(workerTypes.END, id, { s: streams.IN }));
    }
    await promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.hangUp();
  }
}
