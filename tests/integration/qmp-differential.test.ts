import { describe, expect, test } from "bun:test";
import { QMPClient as NodeQemuClient, QmpCommandError } from "node-qemu";
import { QmpClient, QmpError } from "../../qmp/mod.ts";
import { BareQemu, NO_MACHINE, SMALL_PC } from "../support/qmp-qemu.ts";

type Command = [name: string, args?: Record<string, unknown>];

const COMMANDS: Command[] = [
  ["query-version"],
  ["query-status"],
  ["query-commands"],
  ["query-qmp-schema"],
  ["query-kvm"],
  ["query-memdev"],
  ["query-cpus-fast"],
  ["set-action", { reboot: "shutdown", panic: "pause" }],
  ["set-action", { reboot: "nonsense" }],
  ["no-such-command"],
  ["stop", { unexpected: "é\u0001\u2028" }],
  ["migrate-incoming", { uri: "unix:/nowhere" }],
  ["query-migrate"],
  ["cont"],
  ["stop"],
  ["query-status"],
];

/** One client's account of a conversation; the errors as QEMU gave them. */
interface Account {
  answers: unknown[];
  events: { event: string; data: unknown }[];
}

async function ask(run: (...command: Command) => Promise<unknown>): Promise<unknown[]> {
  const answers: unknown[] = [];
  for (const [name, args] of COMMANDS) {
    try {
      answers.push(withoutThreadIds(await run(name, args)));
    } catch (error) {
      if (error instanceof QmpCommandError) {
        answers.push({ refused: error.qmpClass, words: error.description });
      } else if (error instanceof QmpError) {
        const words = error.message.replace(`QMP command "${name}" failed: `, "");
        answers.push({ refused: error.qmpClass, words });
      } else {
        throw error;
      }
    }
  }
  return answers;
}

/** Thread ids are the one answer that two processes cannot share. */
function withoutThreadIds(answer: unknown): unknown {
  return JSON.parse(JSON.stringify(answer, (name, value) => (name === "thread-id" ? 0 : value)));
}

async function askOurs(machine: readonly string[]): Promise<Account> {
  await using qemu = await BareQemu.start(machine);
  const client = await QmpClient.connect(qemu.socket);
  const reader = client.events();
  const answers = await ask((name, args) => client.executeUntyped(name, args));
  await client.close();
  const events: Account["events"] = [];
  for await (const { event, data } of reader) events.push({ event, data: data ?? {} });
  return { answers, events };
}

async function askNodeQemu(machine: readonly string[]): Promise<Account> {
  await using qemu = await BareQemu.start(machine);
  await using _other = await QmpClient.connect(qemu.socket);
  const client = new NodeQemuClient({ socketPath: qemu.servedPath });
  const events: Account["events"] = [];
  client.on("rawEvent", ({ event, data }) => events.push({ event, data }));
  await client.connect();
  const answers = await ask((name, args) => client.execute(name, args));
  await client.close();
  return { answers, events };
}

describe("QmpClient and node-qemu", () => {
  test.each([
    ["no machine", NO_MACHINE],
    ["a small PC", SMALL_PC],
  ])("get equal answers and events from %s", async (_what, machine) => {
    const ours = await askOurs(machine);
    const theirs = await askNodeQemu(machine);
    expect(ours).toEqual(theirs);
    expect(ours.answers).toHaveLength(COMMANDS.length);
    expect(ours.answers[9]).toMatchObject({ refused: "CommandNotFound" });
  });
});
