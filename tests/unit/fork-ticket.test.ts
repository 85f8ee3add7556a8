import { describe, expect, test } from "bun:test";
import { systemClock } from "../../runtime/clock.ts";
import type { Ending } from "../../runtime/fork/family/ending.ts";
import { ForkTicket, type TicketChild } from "../../runtime/fork/family/ticket.ts";
import { rejection } from "../support/agent-peer.ts";

const never = new AbortController().signal;

class Child implements TicketChild {
  readonly index: number;
  readonly vm: string;
  readonly #end = Promise.withResolvers<Ending>();
  #hasEnded = false;

  constructor(index: number) {
    this.index = index;
    this.vm = `vm-${index}`;
  }

  get ended(): Promise<Ending> {
    return this.#end.promise;
  }

  end(ending: Ending): void {
    this.#hasEnded = true;
    this.#end.resolve(ending);
  }

  async kill(reason: string): Promise<boolean> {
    if (this.#hasEnded) return false;
    this.end({ state: "killed", reason });
    return true;
  }
}

function exited(status: number): Ending {
  return { state: "exited", status, result: new Uint8Array(), files: [] };
}

function ticketOf(count: number, lifeMs = 60_000) {
  let held = count;
  const places = Array.from({ length: count }, () => ({ [Symbol.dispose]: () => void held-- }));
  return { ticket: new ForkTicket("t1", places, lifeMs), held: () => held };
}

describe("ForkTicket", () => {
  test("next() tells each child once, as they end, and to whoever asks first", async () => {
    const { ticket } = ticketOf(3);
    const children = [1, 2, 3].map((index) => new Child(index));
    ticket.use();
    ticket.begin(children);
    const asked = [1, 2, 3, 4].map(() => ticket.next(undefined, never, systemClock));
    children[2]!.end(exited(0));
    children[0]!.end({ state: "died", reason: "gone" });
    children[1]!.end(exited(4));
    const told = (await Promise.all(asked)).map((next) => next?.child.index);
    expect(told.sort()).toEqual([1, 2, 3, undefined]);
    expect(ticket.isOver).toBe(true);
    expect(await ticket.next(0, never, systemClock)).toBeUndefined();
  });

  test("next() waits no longer than it was told, and not for a VM that ends", async () => {
    const { ticket } = ticketOf(1);
    expect(await rejection(ticket.next(0, never, systemClock))).toMatchObject({ code: "TICKET_UNKNOWN" });
    ticket.use();
    const child = new Child(1);
    ticket.begin([child]);
    expect(await rejection(ticket.next(0, never, systemClock))).toMatchObject({ code: "JOIN_TIMEOUT" });
    expect(await rejection(ticket.next(1, never, systemClock))).toMatchObject({ code: "JOIN_TIMEOUT" });
    const stop = new AbortController();
    const waiting = rejection(ticket.next(undefined, stop.signal, systemClock));
    stop.abort();
    expect(await waiting).toMatchObject({ code: "FORK_FAILED" });
    child.end(exited(1));
    expect((await ticket.next(undefined, never, systemClock))?.ending).toEqual(exited(1));
  });

  test("use() gives its places once, and none when it has expired", async () => {
    const { ticket, held } = ticketOf(2);
    const places = ticket.use();
    expect(places).toHaveLength(2);
    expect(() => ticket.use()).toThrow("has children already");
    ticket.unuse(places);
    expect(ticket.use()).toHaveLength(2);
    expect(held()).toBe(2);

    const late = ticketOf(2, 1);
    while (late.held() > 0) await new Promise((resolve) => setTimeout(resolve, 1));
    expect(() => late.ticket.use()).toThrow("not used in time");
  });

  test("kill() ends those that run, and says how many those were", async () => {
    const { ticket } = ticketOf(3);
    const children = [1, 2, 3].map((index) => new Child(index));
    expect(await ticket.kill()).toBe(0);
    ticket.use();
    ticket.begin(children);
    children[1]!.end(exited(0));
    expect(await ticket.kill()).toBe(2);
    const endings = await Promise.all([1, 2, 3].map(() => ticket.next(undefined, never, systemClock)));
    expect(endings.map((next) => next?.ending.state).sort()).toEqual(["exited", "killed", "killed"]);
  });
});
