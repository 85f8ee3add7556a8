import {
  type Child,
  checkpointParent,
  clone,
  createClones,
  exit,
  FlurryError,
  fork,
  identity,
  join,
  kill,
  nextChild,
  requestTicket,
} from "../../guest-agent/bindings/src/vm.ts";

/** Makes fork calls as its arguments say, as calls-driver.c does; `abort …` gives one up that is under way. */
async function call(verb: string, ...args: string[]): Promise<void> {
  const [one = "", two] = args;
  const timeout = two === undefined ? {} : { timeoutMs: Number(two) };
  if (verb === "ticket") {
    const { name, granted } = await requestTicket(Number(one), timeout);
    console.log(`${name} ${granted}`);
  } else if (verb === "fork") {
    const { id, ticket, granted } = await fork(Number(one));
    console.log(`${id} ${ticket.name} ${granted}`);
  } else if (verb === "id") {
    const { id, vm, generation, parent } = await identity();
    console.log(`${id} ${vm} ${generation} ${parent ?? "-"}`);
  } else if (verb === "checkpoint") {
    const { id, checkpoint } = await checkpointParent();
    console.log(`${id} ${id === 0 ? checkpoint : "-"}`);
  } else if (verb === "clone") console.log(await clone(one));
  else if (verb === "create") console.log(await createClones(one, two ?? ""));
  else if (verb === "kill") console.log(await kill(one));
  else if (verb === "next") {
    const child = await nextChild(one, timeout);
    console.log(child ? shown(child) : "end");
  } else if (verb === "join") {
    const children = await join(one);
    console.log(`joined ${children.length}`);
    for (const child of children) console.log(shown(child));
  } else if (verb === "exit") {
    const result = two?.startsWith("*") ? new Uint8Array(Number(two.slice(1))).fill(120) : (two ?? "");
    await exit(Number(one), result);
  } else if (verb === "abort") await join(one, { signal: AbortSignal.timeout(50) });
}

function shown({ id, vm, state, status, result, files }: Child): string {
  const words = `${id} ${vm} ${state} ${status} ${Buffer.from(result).toString("hex")}`;
  return [words, ...files.map(({ path }) => path)].join("|");
}

for (const line of process.argv.slice(2)) {
  const [verb = "", ...args] = line.split(" ");
  await call(verb, ...args).catch((error: unknown) => {
    if (!(error instanceof FlurryError)) throw error;
    console.log(`error ${error.code}`);
  });
}
