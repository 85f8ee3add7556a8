import { describe, expect, test } from "bun:test";
import { setTimeout as sleep } from "node:timers/promises";
import { limits } from "../../guest-agent/protocol/constants.ts";
import { OUTBOUND_ID_MIN } from "../../guest-agent/protocol/worker/constants.ts";
import type {
  OutboundHandler,
  OutboundRequest,
  OutboundResponse,
} from "../../guest-agent/protocol/worker/mod.ts";
import { rejection } from "../support/agent-peer.ts";
import { ScriptedWorkerHost } from "../support/worker-peer.ts";
import { eventually } from "../support/worker-process.ts";

const ID = OUTBOUND_ID_MIN;
const asked = {
  requestId: "r",
  method: "GET",
  url: "http://o.test/x",
  headers: [["a", "b"]],
  redirect: "follow",
};
const answer: OutboundResponse = {
  ...{ status: 200, headers: [["c", "d"]], url: "http://o.test/y", redirected: true },
};

/** What a handler was asked, with the means to answer it. */
interface Asked {
  request: OutboundRequest;
  signal: AbortSignal;
  answer: PromiseWithResolvers<OutboundResponse>;
}

async function guestWith(handler?: OutboundHandler) {
  const all: Asked[] = [];
  const keep: OutboundHandler = (request, signal) => {
    const entry = { request, signal, answer: Promise.withResolvers<OutboundResponse>() };
    all.push(entry);
    return entry.answer.promise;
  };
  const guest = await ScriptedWorkerHost.start({ outbound: handler ?? keep });
  guest.greet();
  return { guest, all, [Symbol.asyncDispose]: () => guest[Symbol.asyncDispose]() };
}

/** A stream that tells when it was let go. */
function source(chunk = new Uint8Array(60_000)) {
  const state = { pulled: 0, cancelled: false };
  const body = new ReadableStream<Uint8Array>({
    pull(controller) {
      state.pulled += chunk.length;
      controller.enqueue(chunk);
    },
    cancel() {
      state.cancelled = true;
    },
  });
  return { body, state };
}

describe("the host's end of outbound requests", () => {
  test("passes a request and its body on, and head and body of the answer back", async () => {
    await using peer = await guestWith(async (request) => {
      const { body, ...head } = request;
      expect(head).toEqual({ ...asked, method: "POST" } as never);
      return { ...answer, statusText: "Good\u2603\n", body: body ?? new Uint8Array() };
    });
    const { guest } = peer;
    guest.send("OUTBOUND", ID, { ...asked, method: "POST", body: true });
    guest.data(ID, Buffer.from("echo"));
    guest.send("END", ID, { s: 1 });
    expect(await guest.expect("ANSWER")).toMatchObject({ id: ID, ...answer, statusText: "Good", body: true });
    expect(Buffer.from((await guest.expect("DATA")).data).toString()).toBe("echo");
    expect(await guest.expect("END")).toMatchObject({ id: ID, stream: 0 });
    await eventually(() => guest.isIdle);
    // The id is free.
    guest.send("OUTBOUND", ID, { ...asked, method: "POST" });
    expect(await guest.expect("ANSWER")).toMatchObject({ id: ID });
  });

  test("refuses all when nobody makes them, and names where it should have gone", async () => {
    await using guest = await ScriptedWorkerHost.start();
    guest.greet();
    guest.send("OUTBOUND", ID, asked);
    expect(await guest.expect("ERROR")).toMatchObject({
      ...{ id: ID, code: "FORBIDDEN", message: expect.stringContaining("o.test") },
    });
  });

  test("tells of a handler's error, and of an answer that cannot be passed on", async () => {
    const bad: OutboundResponse[] = [
      { ...answer, status: 101 },
      { ...answer, status: 600 },
      { ...answer, headers: [["a", "b\nc"]] },
      { ...answer, headers: [["a", "x".repeat(40_000)]] },
      { ...answer, headers: Array.from({ length: 300 }, () => ["a", "b"] as const) },
      { ...answer, url: `http://o/${"x".repeat(20_000)}` },
    ];
    for (const given of bad) {
      const { body, state } = source();
      await using peer = await guestWith(async () => ({ ...given, body }));
      peer.guest.send("OUTBOUND", ID, asked);
      expect(await peer.guest.expect("ERROR")).toMatchObject({ id: ID, code: "FAILED" });
      await eventually(() => state.cancelled);
    }
    const thrown: [unknown, string, string][] = [
      [new Error("x".repeat(5000)), "FAILED", "x".repeat(2048)],
      [Object.assign(new Error("no"), { code: "OUTBOUND_FORBIDDEN" }), "FORBIDDEN", "no"],
      ["a text", "FAILED", "a text"],
      [undefined, "FAILED", "undefined"],
    ];
    for (const [error, code, message] of thrown) {
      await using peer = await guestWith(() => Promise.reject(error));
      peer.guest.send("OUTBOUND", ID, asked);
      expect(await peer.guest.expect("ERROR")).toMatchObject({ code, message });
    }
    await using peer = await guestWith(() => {
      throw new Error("at once");
    });
    peer.guest.send("OUTBOUND", ID, asked);
    expect(await peer.guest.expect("ERROR")).toMatchObject({ code: "FAILED", message: "at once" });
  });

  test("says where an answer breaks off", async () => {
    await using peer = await guestWith(async () => ({
      ...answer,
      body: new ReadableStream<Uint8Array>({
        start(controller) {
          controller.enqueue(Buffer.from("half"));
        },
        pull: () => Promise.reject(new Error("the source broke")),
      }),
    }));
    peer.guest.send("OUTBOUND", ID, asked);
    await peer.guest.expect("ANSWER");
    await peer.guest.expect("DATA");
    expect(await peer.guest.expect("ABORT")).toMatchObject({
      id: ID,
      stream: 0,
      message: "the source broke",
    });
  });

  test("sends one window of an answer that nobody reads, and goes on with credit", async () => {
    const { body, state } = source();
    await using peer = await guestWith(async () => ({ ...answer, body }));
    peer.guest.send("OUTBOUND", ID, asked);
    await peer.guest.expect("ANSWER");
    let got = 0;
    while (got < limits.WINDOW_TO_GUEST) got += (await peer.guest.expect("DATA")).data.length;
    await sleep(20);
    expect([got, peer.guest.isIdle]).toEqual([limits.WINDOW_TO_GUEST, true]);
    expect(state.pulled).toBeLessThan(limits.WINDOW_TO_GUEST + 200_000);
    peer.guest.send("CREDIT", ID, { s: 0, n: 1000 });
    expect((await peer.guest.expect("DATA")).data).toHaveLength(1000);
    peer.guest.send("CANCEL", ID, { s: 0 });
    await eventually(() => state.cancelled);
  });

  test("gives credit for a request's body only as it is read, and says when no more is wanted", async () => {
    await using peer = await guestWith();
    const { guest, all } = peer;
    guest.send("OUTBOUND", ID, { ...asked, body: true });
    for (let i = 0; i < 8; i++) guest.data(ID, new Uint8Array(16_000));
    await eventually(() => all.length === 1);
    await sleep(20);
    expect(guest.isIdle).toBe(true);
    const reader = all[0]!.request.body!.getReader();
    for (let i = 0; i < 5; i++) await reader.read();
    expect(await guest.expect("CREDIT")).toMatchObject({ id: ID, stream: 1, bytes: 80_000 });
    await reader.cancel();
    expect(await guest.expect("CANCEL")).toMatchObject({ id: ID, stream: 1 });
    guest.data(ID, new Uint8Array(10)); // it crossed the cancel
    guest.send("END", ID, { s: 1 });
    all[0]!.answer.resolve(answer);
    expect(await guest.expect("ANSWER")).toMatchObject({ id: ID, body: false });
  });

  test("ends a request that the guest cancels: before the answer, and an answer that comes too late", async () => {
    await using peer = await guestWith();
    const { guest, all } = peer;
    guest.send("OUTBOUND", ID, { ...asked, body: true });
    await eventually(() => all.length === 1);
    const [first] = all;
    const read = rejection(first!.request.body!.getReader().read());
    guest.send("CANCEL", ID, { s: 0 });
    await eventually(() => first!.signal.aborted);
    expect(await read).toMatchObject({ code: "ABORTED" });
    const { body, state } = source();
    first!.answer.resolve({ ...answer, body });
    await eventually(() => state.cancelled);
    expect(guest.isIdle).toBe(true);
    guest.send("OUTBOUND", ID, asked);
    await eventually(() => all.length === 2);
  });

  test("ends them all with the channel, whoever closes it", async () => {
    for (const close of ["client", "socket"] as const) {
      await using peer = await guestWith();
      const { guest, all } = peer;
      const { body, state } = source();
      for (let i = 0; i < 3; i++) guest.send("OUTBOUND", ID + i, asked);
      await eventually(() => all.length === 3);
      all[0]!.answer.resolve({ ...answer, body });
      await guest.expect("ANSWER");
      if (close === "client") guest.client.close();
      else guest.socket.destroy();
      await guest.client.closed;
      expect(all.map(({ signal }) => signal.aborted)).toEqual([true, true, true]);
      expect(all[1]!.signal.reason).toMatchObject({ code: "AGENT_CLOSED" });
      await eventually(() => state.cancelled);
      all[1]!.answer.reject(new Error("late"));
    }
  });

  test("are at most 64 at once, and hold off quiesce()", async () => {
    await using peer = await guestWith();
    const { guest, all } = peer;
    for (let i = 0; i < 65; i++) guest.send("OUTBOUND", ID + i, asked);
    expect(await guest.expect("ERROR")).toMatchObject({ id: ID + 64, code: "LIMIT" });
    expect(all).toHaveLength(64);
    expect(await rejection(guest.client.quiesce())).toMatchObject({ code: "AGENT_REFUSED", remote: "BUSY" });
    for (let i = 0; i < 64; i++) guest.send("CANCEL", ID + i, { s: 0 });
    await eventually(() => all.every(({ signal }) => signal.aborted));
    const quiet = guest.client.quiesce();
    guest.send("QUIESCED", (await guest.expect("QUIESCE")).id);
    await quiet;
  });

  const breaches: Record<string, (guest: ScriptedWorkerHost) => void> = {
    "uses an id of the host": (guest) => guest.send("OUTBOUND", 5, asked),
    "uses an id twice": (guest) => guest.send("OUTBOUND", ID, asked),
    "sends a body that it has not announced": (guest) => guest.data(ID, Buffer.from("x")),
    "ends a body that it has not announced": (guest) => guest.send("END", ID, { s: 1 }),
    "sends more than its credit": (guest) => {
      guest.send("OUTBOUND", ID + 1, { ...asked, body: true });
      for (let i = 0; i < 9; i++) guest.data(ID + 1, new Uint8Array(32_000));
    },
    "gives more credit than a window": (guest) => guest.send("CREDIT", ID, { s: 0, n: 1 }),
    "gives credit for its own stream": (guest) => guest.send("CREDIT", ID, { s: 1, n: 1 }),
    "cancels its own stream": (guest) => guest.send("CANCEL", ID, { s: 1 }),
    "answers itself": (guest) => guest.send("RESPONSE", ID, { status: 200, headers: [] }),
    "has no method": (guest) => guest.send("OUTBOUND", ID + 1, { ...asked, method: "a b" }),
    "has a URL above the bound": (guest) =>
      guest.send("OUTBOUND", ID + 1, { ...asked, url: `http://${"x".repeat(17_000)}` }),
    "has bad headers": (guest) => guest.send("OUTBOUND", ID + 1, { ...asked, headers: [["a b", "c"]] }),
    "has another redirect mode": (guest) => guest.send("OUTBOUND", ID + 1, { ...asked, redirect: "maybe" }),
  };

  test.each(Object.entries(breaches))("closes the channel when the guest %s", async (_name, act) => {
    await using peer = await guestWith();
    peer.guest.send("OUTBOUND", ID, asked);
    act(peer.guest);
    expect(await peer.guest.client.closed).toMatchObject({ code: "AGENT_PROTOCOL" });
    expect(peer.all.every(({ signal }) => signal.aborted)).toBe(true);
  });
});
