import { CallError } from "./call-error.ts";
import type { Answer, Request } from "./conversation.ts";
import { RESULT_MAX, told } from "./ending.ts";
import type { Snapshot } from "./snapshot.ts";
import { startChildren } from "./start-children.ts";
import { ForkTicket } from "./ticket.ts";
import type { VmNode } from "./vm-node.ts";

/** Longest life of a ticket that is not used, in ms. */
const TICKET_MS = 600_000;
/** Most children of one ticket. */
const CHILDREN_MAX = 1000;
/** Most tickets and checkpoints of one VM that are remembered; of tickets, those that are over go first. */
const TICKETS_MAX = 1000;
const CHECKPOINTS_MAX = 16;

type Verb = (node: VmNode, request: Request) => ReturnType<Answer>;

const verbs: Readonly<Record<string, Verb>> = {
  id: async (node) => [`ok ${node.index} ${node.vm} ${node.generation} ${node.parent?.vm ?? "-"}\n`],

  ticket: async (node, { args }) => {
    const count = number(args[0], 1, CHILDREN_MAX);
    const lifeMs = args[1] === undefined ? TICKET_MS : number(args[1], 1, TICKET_MS);
    const ticket = newTicket(node, count, lifeMs);
    return [`ok ${ticket.name} ${ticket.granted} ${lifeMs}\n`];
  },

  clone: async (node, { args, call }) => {
    const ticket = ticketOf(node, args[0]);
    await clone(node, ticket, call.id, (index) => `ok ${index} ${ticket.granted}\n`);
    return [`ok 0 ${ticket.granted}\n`];
  },

  fork: async (node, { args, call }) => {
    const ticket = newTicket(node, number(args[0], 1, CHILDREN_MAX), TICKET_MS);
    const answer = (index: number) => `ok ${index} ${ticket.name} ${ticket.granted}\n`;
    await clone(node, ticket, call.id, answer).catch((error) => {
      // Nobody has heard of it.
      node.tickets.delete(ticket.name);
      ticket[Symbol.dispose]();
      throw error;
    });
    return [answer(0)];
  },

  checkpoint: async (node, { call }) => {
    if (node.checkpoints.size >= CHECKPOINTS_MAX) {
      throw new CallError("FORK_FAILED", `This VM has ${CHECKPOINTS_MAX} checkpoints already`);
    }
    const name = node.newName("c");
    const { make } = await frozen(node, call.id);
    node.checkpoints.set(name, await make());
    return [`ok 0 ${name}\n`];
  },

  create: async (node, { args }) => {
    const snapshot = node.checkpoints.get(args[0] ?? "");
    if (!snapshot) throw new CallError("CHECKPOINT_UNKNOWN", `No checkpoint "${args[0] ?? ""}" in this VM`);
    const ticket = ticketOf(node, args[1]);
    const first = (index: number) => `ok ${index} ${args[0]}\n`;
    ticket.begin(
      startChildren(node, Promise.resolve(snapshot), { places: ticket.use(), ticket: ticket.name, first }),
    );
    return [`ok ${ticket.granted}\n`];
  },

  exit: async (node, { args, body }) => {
    const status = number(args[0], 0, 255);
    const result = await body(number(args[1], 0, RESULT_MAX));
    await node.exit(status, result);
    return undefined;
  },

  next: async (node, { args }) => {
    const ticket = ticketOf(node, args[0]);
    const waitMs = args[1] === undefined ? undefined : number(args[1], 0, Number.MAX_SAFE_INTEGER);
    const next = await ticket.next(waitMs, node.stopped, node.tree.clock);
    if (!next) return ["end\n"];
    const { child, ending } = next;
    const { status, bytes, files } = told(ending);
    const head = `child ${child.index} ${child.vm} ${ending.state} ${status} ${bytes.length} ${files.length}\n`;
    return [head, bytes, ...files.map(({ size, path }) => `file ${size} ${path}\n`)];
  },

  kill: async (node, { args }) => [`ok ${await ticketOf(node, args[0]).kill()}\n`],
};

/** Answers one request of a program of a VM: guest-agent/protocol/CALLS.md. */
export const answerTo = async (node: VmNode, request: Request): ReturnType<Answer> => {
  const verb = Object.hasOwn(verbs, request.verb) ? verbs[request.verb] : undefined;
  if (!verb) throw new CallError("BAD_CALL", `No request "${request.verb.slice(0, 40)}"`);
  return await verb(node, request);
};

async function clone(
  node: VmNode,
  ticket: ForkTicket,
  caller: number,
  first: (index: number) => string,
): Promise<void> {
  const places = ticket.use();
  let made: { make(): Promise<Snapshot> };
  try {
    made = await frozen(node, caller);
  } catch (error) {
    ticket.unuse(places);
    throw error;
  }
  const snapshot = made.make();
  const children = startChildren(node, snapshot, { places, ticket: ticket.name, first });
  ticket.begin(children);
  void giveUp(snapshot, children);
}

/** What children were made of is not needed when all have started. */
async function giveUp(coming: Promise<Snapshot>, children: readonly VmNode[]): Promise<void> {
  await Promise.all(children.map(({ started }) => started));
  const [snapshot] = await Promise.allSettled([coming]);
  if (snapshot.status === "fulfilled") await snapshot.value.generation[Symbol.asyncDispose]();
}

async function frozen(node: VmNode, caller: number) {
  const { maxGenerations = 32 } = node.tree.policy;
  if (node.generation >= maxGenerations) {
    throw new CallError("FORK_DENIED", `There are ${maxGenerations} generations already`);
  }
  try {
    return await node.snapshot(caller);
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new CallError("FORK_FAILED", reason, { cause: error });
  }
}

function newTicket(node: VmNode, count: number, lifeMs: number): ForkTicket {
  if (node.tickets.size >= TICKETS_MAX) {
    const over = [...node.tickets.values()].find(({ isOver }) => isOver);
    if (!over) throw new CallError("TICKET_REFUSED", `This VM has ${TICKETS_MAX} tickets whose children run`);
    node.tickets.delete(over.name);
  }
  const places = node.tree.places(count);
  if (places.length === 0) {
    throw new CallError(
      "TICKET_REFUSED",
      "There is no room for a child: of the owner's quota, or of the host's",
    );
  }
  const ticket = new ForkTicket(node.newName("t"), places, lifeMs);
  node.tickets.set(ticket.name, ticket);
  return ticket;
}

function ticketOf(node: VmNode, name = ""): ForkTicket {
  const ticket = node.tickets.get(name);
  if (!ticket) throw new CallError("TICKET_UNKNOWN", `No ticket "${name.slice(0, 40)}" in this VM`);
  return ticket;
}

function number(text: string | undefined, least: number, most: number): number {
  const value = text !== undefined && /^\d{1,16}$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= most) return value;
  throw new CallError("BAD_CALL", `"${(text ?? "").slice(0, 40)}" is no number from ${least} to ${most}`);
}
