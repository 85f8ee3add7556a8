import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { processesOf } from "../../runtime/vm/owner.ts";
import { CliSandbox } from "../support/cli.ts";
import { Dice } from "../support/dice.ts";
import { Campaign } from "../support/gateway-campaign.ts";
import { checkCampaign } from "../support/gateway-campaign-checks.ts";
import { cliGateway, GatewayLives } from "../support/gateway-lives.ts";
import { eventually } from "../support/gateway-sandbox.ts";
import { type Strike, Strikes } from "../support/gateway-strikes.ts";
import { inputOf, WORK_SCRIPT } from "../support/gateway-work.ts";
import { leftoversOf } from "../support/store-leftovers.ts";
import { openDescriptors } from "../support/vm.ts";
import { ChannelCutter } from "../support/workers-children.ts";

const SEED = 20_261_104;
/** Of each kind: more than would be hidden by what comes and goes anyway. */
const FAULTS = 6;
const MOST_MS = 600_000;

const worker = { image: "base", command: ["/bin/sh", "-c", WORK_SCRIPT], memoryMiB: 128 };

let sandbox: CliSandbox;
let cutter: ChannelCutter;
let lives: GatewayLives;
let dir: string;

beforeAll(async () => {
  sandbox = new CliSandbox();
  cutter = await ChannelCutter.make();
  await sandbox.buildImage("base");
  dir = join(sandbox.directory, "data");
  lives = new GatewayLives(() => cliGateway(sandbox, dir));
}, 900_000);

afterAll(async () => {
  await lives[Symbol.asyncDispose]();
  cutter[Symbol.dispose]();
  await sandbox[Symbol.asyncDispose]();
}, 60_000);

/** What a gateway has: descriptors, VMs, and files of its runtime, without their numbers. */
function level(): string[] {
  const files = [sandbox.run, sandbox.shm].flatMap((path) =>
    readdirSync(path, { recursive: true, encoding: "utf8" }),
  );
  return [
    ...openDescriptors(lives.pid),
    ...processesOf(sandbox.run).map(() => "VM"),
    ...files.map((file) => `file ${file.replace(/\d+/g, "N")}`),
  ].sort();
}

/** Fails with what is different, unless the gateway comes to have what it had. */
async function expectLevel(before: readonly string[]): Promise<void> {
  await eventually(() => String(level()) === String(before)).catch(() =>
    expect(level()).toEqual([...before]),
  );
}

test(
  "a gateway comes back to the same level after each kind of failure",
  async () => {
    await lives.start();
    const { client } = lives;
    const campaign = new Campaign({ client, worker, log: () => lives.log() });
    await campaign.tell(`Seed ${SEED}`, MOST_MS, async () => {
      const strikes = new Strikes({ run: sandbox.run, dice: new Dice(SEED), cutter });
      const run = (key: string, count: number, ms: number) => {
        const inputs = Array.from({ length: count }, (_, index) =>
          inputOf({ name: `${key}-${index}`, ms, failures: index % 2, bytes: 100_000 }),
        );
        return campaign.run({ key, inputs, how: "lines" });
      };
      const settled = async () => {
        await run(`quiet-${campaign.jobs.size}`, 4, 0);
        await checkCampaign(campaign);
      };
      await settled();
      await settled();
      const before = level();
      const strikeAll = async (how: Strike) => {
        const job = run(how, 4, 1000);
        for (let count = 0; count < FAULTS; count += 1) campaign.faults.push(await strikes.strike(how));
        await job;
        await settled();
        await expectLevel(before);
      };
      await strikeAll("child");
      await strikeAll("vm");
      await strikeAll("channel");
      for (let count = 0; count < FAULTS; count += 1) await goAway(campaign, count);
      await settled();
      await expectLevel(before);
      for (let count = 0; count < FAULTS; count += 1) {
        const job = run(`killed-${count}`, 2, 200);
        await campaign.moreEvents(3);
        campaign.faults.push("the gateway was killed");
        await lives.kill();
        await lives.start();
        await job;
      }
      await settled();
      await settled();
      await expectLevel(before);
      expect(await lives.stop()).toBe(0);
      campaign.problems.push(...leftoversOf(dir), ...sandbox.leftovers());
      expect(campaign.problems).toEqual([]);
    });
  },
  MOST_MS + 60_000,
);

/** A client that goes away in the middle of an upload, of events, and of a file. */
async function goAway({ client, jobs, faults }: Campaign, count: number): Promise<void> {
  faults.push("a client went away");
  const gone = new AbortController();
  const { signal } = gone;
  const inputs = async function* () {
    for (let index = 0; index < 10; index += 1) yield "x".repeat(50_000);
    gone.abort();
    yield "never read";
  };
  const key = `gone-${count}`;
  await client.jobs.submitStream({ worker, tags: [key] }, inputs(), { signal }).catch((error) => {
    if (error.code !== "ABORTED") throw error;
  });
  const [id] = [...jobs.keys()];
  for await (const _event of client.jobs.events(id!)) break;
  const { stream } = await client.jobs.artifact(id!, 0, "sub/file");
  await stream.cancel();
}
