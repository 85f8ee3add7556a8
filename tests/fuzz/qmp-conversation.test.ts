import { describe, expect, test } from "bun:test";
import { Buffer } from "node:buffer";
import { setImmediate as nextTurn } from "node:timers/promises";
import fc from "fast-check";
import { LineBuffer } from "../../qmp/line-buffer.ts";
import { QmpClient, QmpError } from "../../qmp/mod.ts";
import { eventLine, ScriptedQmpPeer } from "../support/scripted-qmp-peer.ts";

const RUN = { seed: 20090401, numRuns: 300 };

/** What the server does with one command, and which event comes before that. */
interface Turn {
  answer: { value: unknown } | { qmpClass: string; desc: string };
  event: { name: string; data: unknown } | undefined;
  /** Several objects may share a line. */
  separator: string;
}

const turnArbitrary: fc.Arbitrary<Turn> = fc.record({
  answer: fc.oneof(
    fc.record({ value: fc.jsonValue() }),
    fc.record({
      qmpClass: fc.constantFrom("GenericError", "DeviceNotFound"),
      desc: fc.string({ unit: "binary" }),
    }),
  ),
  event: fc.option(fc.record({ name: fc.constantFrom("STOP", "X_OTHER"), data: fc.jsonValue() }), {
    nil: undefined,
  }),
  separator: fc.constantFrom("\n", "\r\n", " ", "", "\n\r\n\n"),
});

interface Account {
  answers: unknown[];
  events: unknown[];
}

/** A client that is past the turn in which first events are held. */
async function connected() {
  const { peer, transport } = ScriptedQmpPeer.inMemory();
  const connecting = QmpClient.over(transport);
  await peer.handshake();
  const client = await connecting;
  await nextTurn();
  return { peer, client };
}

function settle(promise: Promise<unknown>): Promise<unknown> {
  return promise.then(
    (value) => ({ value }),
    (error: unknown) => {
      if (!(error instanceof QmpError)) throw error;
      return { code: error.code, qmpClass: error.qmpClass, message: error.message };
    },
  );
}

/** Holds the conversation: all commands first, then the answers in `order`, sent in `cut` pieces. */
async function converse(
  turns: readonly Turn[],
  order: readonly number[],
  cut: (bytes: Buffer) => Buffer[],
): Promise<Account> {
  const { peer, client } = await connected();
  const reader = client.events();
  const answers = turns.map((_, i) => settle(client.executeUntyped("command", { i })));
  const ids: number[] = [];
  for (const i of turns.keys()) ids.push(await peer.expect("command", { i }));
  let text = "";
  for (const i of order) {
    const { answer, event, separator } = turns[i]!;
    if (event !== undefined) text += eventLine(event.name, event.data) + separator;
    const reply =
      "value" in answer
        ? { return: answer.value, id: ids[i] }
        : { id: ids[i], error: { class: answer.qmpClass, desc: answer.desc } };
    text += JSON.stringify(reply) + separator;
  }
  for (const piece of cut(Buffer.from(`${text}\n`))) peer.send(piece);
  const account: Account = { answers: await Promise.all(answers), events: [] };
  await client.close();
  for await (const { event, data } of reader) account.events.push({ event, data });
  return account;
}

function cutAt(places: readonly number[]): (bytes: Buffer) => Buffer[] {
  return (bytes) => {
    const ends = [...new Set(places.map((place) => place % bytes.length)), bytes.length].sort(
      (a, b) => a - b,
    );
    return ends.map((end, i) => bytes.subarray(ends[i - 1] ?? 0, end));
  };
}

describe("a valid conversation", () => {
  test("has the same outcome however it is cut into chunks", async () => {
    const conversation = fc
      .array(turnArbitrary, { minLength: 1, maxLength: 12 })
      .chain((turns) =>
        fc.tuple(
          fc.constant(turns),
          fc.shuffledSubarray([...turns.keys()], { minLength: turns.length }),
          fc.array(fc.nat(), { maxLength: 60 }),
        ),
      );
    await fc.assert(
      fc.asyncProperty(conversation, async ([turns, order, places]) => {
        const whole = await converse(turns, order, (bytes) => [bytes]);
        expect(await converse(turns, order, cutAt(places))).toEqual(whole);
        const bytewise = await converse(turns, order, (bytes) => [...bytes].map((byte) => Buffer.of(byte)));
        expect(bytewise).toEqual(whole);
        // And the outcome is what the server meant.
        const meant = turns.map(({ answer }) =>
          "value" in answer
            ? { value: JSON.parse(JSON.stringify(answer.value)) }
            : {
                code: "QMP_COMMAND_FAILED",
                qmpClass: answer.qmpClass,
                message: `QMP command "command" failed: ${answer.desc}`,
              },
        );
        expect(whole.answers).toEqual(meant);
        expect(whole.events).toHaveLength(turns.filter((turn) => turn.event !== undefined).length);
      }),
      RUN,
    );
  }, 60_000);
});

describe("LineBuffer", () => {
  test("agrees with a split of the whole text", () => {
    const text = fc.string({ unit: fc.constantFrom("a", "\n", "\r", "é", "😀") });
    fc.assert(
      fc.property(text, fc.array(fc.nat(), { maxLength: 20 }), (all, places) => {
        const buffer = new LineBuffer(1 << 20);
        const lines: string[] = [];
        const bytes = Buffer.from(`${all}\n`);
        for (const piece of cutAt(places)(bytes)) {
          buffer.push(piece);
          for (let line = buffer.next(); line !== undefined; line = buffer.next()) lines.push(line);
        }
        expect(lines).toEqual(all.split("\n"));
      }),
      RUN,
    );
  });
});

/** Bytes that are no QMP, or nearly so. */
const garbage = fc.oneof(
  fc.uint8Array({ maxLength: 200 }).map((bytes) => Buffer.from(bytes)),
  fc.json().map((text) => Buffer.from(`${text}\n`)),
  fc
    .tuple(
      fc.constantFrom(
        '{"return":{},"id":1}\n',
        '{"error":{"class":"GenericError","desc":"x"},"id":1}\n',
        `${eventLine("STOP", {})}\n`,
        '{"QMP":{"version":{"qemu":{"major":1,"minor":2,"micro":3},"package":""},"capabilities":["oob"]}}\n',
      ),
      fc.nat(),
      fc.nat(255),
    )
    .map(([text, place, byte]) => {
      const bytes = Buffer.from(text);
      bytes[place % bytes.length] = byte;
      return bytes;
    }),
  fc
    .tuple(fc.constantFrom("[", '{"a":', '"', "{}", "}"), fc.integer({ min: 1, max: 20_000 }))
    .map(([text, times]) => Buffer.from(`${text.repeat(times)}\n`)),
);

describe("arbitrary bytes", () => {
  test("after the handshake end in a settled state: nothing hangs, nothing is unhandled", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(garbage, { minLength: 1, maxLength: 5 }), async (pieces) => {
        const { peer, client } = await connected();
        const waits = [client.execute("stop"), client.execute("query-status"), client.expect("RESUME")].map(
          settle,
        );
        client.expect("STOP");
        const reader = client.events();
        for (const piece of pieces) peer.send(piece);
        peer.drop();
        const reason = await client.closed;
        expect(["QMP_CLOSED", "QMP_PROTOCOL"]).toContain(reason.code);
        expect(await Promise.all(waits)).toMatchObject(waits.map(() => ({ code: reason.code })));
        const drain = async (): Promise<void> => {
          for await (const event of reader) expect(typeof event.event).toBe("string");
        };
        expect(await settle(drain())).toMatchObject({ code: reason.code });
      }),
      RUN,
    );
  }, 60_000);

  test("instead of a handshake make connect() reject", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(garbage, { minLength: 1, maxLength: 3 }), async (pieces) => {
        const { peer, transport } = ScriptedQmpPeer.inMemory();
        const connecting = settle(QmpClient.over(transport));
        for (const piece of pieces) peer.send(piece);
        peer.drop();
        expect(["QMP_CLOSED", "QMP_PROTOCOL"]).toContain(((await connecting) as { code: string }).code);
      }),
      RUN,
    );
  }, 60_000);
});
