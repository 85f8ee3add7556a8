import { expect, test } from "bun:test";
import fc from "fast-check";
import { CALL_IDS } from "../../guest-agent/protocol/constants.ts";
import { Conversation } from "../../runtime/fork/family/conversation.ts";
import { answerTo } from "../../runtime/fork/family/fork-calls.ts";
import { VmNode } from "../../runtime/fork/family/vm-node.ts";
import { VmTree } from "../../runtime/fork/family/vm-tree.ts";
import { ScriptedGuest } from "../support/agent-peer.ts";

const SEED = 20090402;
const ID = CALL_IDS + 1;

const word = fc.oneof(
  fc.constantFrom(
    "fork",
    "ticket",
    "clone",
    "next",
    "kill",
    "exit",
    "create",
    "checkpoint",
    "id",
    "t1",
    "c1",
  ),
  fc.constantFrom(
    "0",
    "1",
    "-1",
    "256",
    "1000",
    "1001",
    "1048577",
    "9".repeat(17),
    "toString",
    "__proto__",
    "",
  ),
  fc.string({ maxLength: 12 }),
);
const line = fc.oneof(
  fc.array(word, { maxLength: 5 }).map((words) => words.join(" ")),
  fc.string({ unit: "binary", maxLength: 200 }),
  fc.constantFrom("x".repeat(5000), "fork 3", "ticket 5 100", "next t1", "kill t2"),
);
const bytes = fc
  .array(line, { minLength: 1, maxLength: 8 })
  .map((lines) => Buffer.from(`${lines.join("\n")}\n`));
const cuts = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 20 });

test("whatever a program says, it is answered line by line, or its call is ended", async () => {
  await using guest = await ScriptedGuest.start();
  const tree = new VmTree({ place: () => undefined });
  const said = new Set<string>();
  let taken: Promise<void> | undefined;
  guest.client.onCall((call) => {
    // There is no VM behind it: no place is ever given, so nothing comes so far as to need it.
    const node = new VmNode(tree, { index: 0, generation: 0, parent: undefined, ticket: undefined });
    taken = new Conversation(call, (request) => answerTo(node, request)).run();
  });
  guest.greet();
  await fc.assert(
    fc.asyncProperty(bytes, cuts, async (text, sizes) => {
      taken = undefined;
      guest.send("CALL", ID, { pid: 5, uid: 0, gid: 0 });
      for (let at = 0, part = 0; at < text.length; part++) {
        const size = sizes[part % sizes.length]!;
        guest.send("DATA", ID, { s: 1, d: text.subarray(at, at + size) });
        at += size;
      }
      guest.send("END", ID, { s: 1 });
      for (;;) {
        const [, id, fields] = await guest.next();
        expect(id).toBe(ID);
        // Its own direction's end is the last that is said.
        if (fields?.s === 0 && !("d" in fields)) break;
        if (fields && "d" in fields) {
          for (const answer of Buffer.from(fields.d as Uint8Array)
            .toString()
            .split("\n")
            .slice(0, -1)) {
            expect(answer).toMatch(/^(ok|error [A-Z_]+) /);
            said.add(answer.split(" ")[1]!);
          }
        }
      }
      await taken;
    }),
    { seed: SEED, numRuns: 300 },
  );
  expect(guest.client.isOpen).toBe(true);
  for (const code of ["BAD_CALL", "TICKET_REFUSED", "TICKET_UNKNOWN"]) expect(said).toContain(code);
});
