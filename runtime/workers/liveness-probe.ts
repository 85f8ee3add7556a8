import { codeOf } from "../../errors/errors.ts";
import type { AgentClient } from "../../guest-agent/protocol/mod.ts";

/** Watches that a guest's agent goes on answering. Stops when disposed. */
export class LivenessProbe implements Disposable {
  readonly #agent: Pick<AgentClient, "ping">;
  readonly #silenceMs: number;
  readonly #lost = new AbortController();
  readonly #stop = new AbortController();
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param silenceMs - time between two questions, and for each answer */
  constructor(agent: Pick<AgentClient, "ping">, silenceMs: number) {
    this.#agent = agent;
    this.#silenceMs = silenceMs;
    this.#askLater();
  }

  /** Fires when an answer has not come in time. */
  get lost(): AbortSignal {
    return this.#lost.signal;
  }

  #askLater(): void {
    this.#timer = setTimeout(() => void this.#ask(), this.#silenceMs);
  }

  async #ask(): Promise<void> {
    try {
      await this.#agent.ping({ timeoutMs: this.#silenceMs, signal: this.#stop.signal });
      if (!this.#stop.signal.aborted) this.#askLater();
    } catch (error) {
      // Of a channel that is closed its other users know already.
      if (codeOf(error) === "AGENT_TIMEOUT") this.#lost.abort(error);
    }
  }

  [Symbol.dispose](): void {
    clearTimeout(this.#timer);
    this.#stop.abort();
  }
}
