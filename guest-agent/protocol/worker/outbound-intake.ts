import type { OutboundHandler, OutboundRequest } from "./client-types.ts";
import type { LostError, WorkerMessageHandler } from "./connection.ts";
import { workerLimits } from "./constants.ts";
import { WorkerError } from "./errors.ts";
import type { GuestMessage } from "./guest-messages.ts";
import { type OutboundChannel, OutboundExchange, refuse } from "./outbound-exchange.ts";

/** The worker's own requests that are under way over one channel. They end with it. */
export class OutboundIntake implements WorkerMessageHandler {
  readonly #handler: OutboundHandler;
  readonly #channel: OutboundChannel;
  readonly #exchanges = new Map<number, OutboundExchange>();

  constructor(handler: OutboundHandler | undefined, channel: OutboundChannel) {
    this.#handler = handler ?? refuseAll;
    this.#channel = channel;
  }

  get size(): number {
    return this.#exchanges.size;
  }

  onMessage(message: GuestMessage): void {
    if (message.type === "OUTBOUND") this.#begin(message);
    // What crossed the end of its exchange has nobody waiting.
    else this.#exchanges.get(message.id)?.onMessage(message);
  }

  onClose(error: LostError): void {
    const exchanges = [...this.#exchanges.values()];
    this.#exchanges.clear();
    for (const exchange of exchanges) exchange.stop(error);
  }

  #begin(message: Extract<GuestMessage, { type: "OUTBOUND" }>): void {
    const { id } = message;
    if (this.#exchanges.has(id)) {
      throw new WorkerError("AGENT_PROTOCOL", `The guest sent a request with the id ${id}, which is in use`);
    }
    if (this.#exchanges.size >= workerLimits.OUTBOUND_MAX) {
      refuse(this.#channel, id, "LIMIT", `${this.#exchanges.size} outbound requests are under way`);
      return;
    }
    const exchange = new OutboundExchange(this.#channel, message, () => this.#exchanges.delete(id));
    this.#exchanges.set(id, exchange);
    exchange.run(this.#handler);
  }
}

async function refuseAll({ url }: OutboundRequest): Promise<never> {
  const host = URL.canParse(url) ? new URL(url).host : "anywhere";
  throw Object.assign(new Error(`this worker may not connect to ${host}: it has no outbound network`), {
    code: "OUTBOUND_FORBIDDEN",
  });
}
