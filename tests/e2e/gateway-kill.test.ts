import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { processesOf } from "../../runtime/vm/owner.ts";
import { CliSandbox } from "../support/cli.ts";
import { Dice } from "../support/dice.ts";
import { Campaign, type CampaignJob } from "../support/gateway-campaign.ts";
import { checkCampaign, checkDeliveries } from "../support/gateway-campaign-checks.ts";
import { cliGateway, GatewayLives } from "../support/gateway-lives.ts";
import { eventually } from "../support/gateway-sandbox.ts";
import { Strikes } from "../support/gateway-strikes.ts";
import { Receiver, status } from "../support/gateway-webhooks.ts";
import { inputOf, WORK_SCRIPT } from "../support/gateway-work.ts";
import { leftoversOf } from "../support/store-leftovers.ts";
import { ChannelCutter, runningChildren } from "../support/workers-children.ts";

const SEED = 20_260_323;
const FAULTS = { gateway: 15, child: 14, vm: 6, channel: 15 } as const;
type Fault = keyof typeof FAULTS;
/** A bound, no expectation. */
const MOST_MS = 900_000;
const PADDED = 20_000;

const worker = { image: "base", command: ["/bin/sh", "-c", WORK_SCRIPT], memoryMiB: 128 };

let sandbox: CliSandbox;
let cutter: ChannelCutter;

beforeAll(async () => {
  sandbox = new CliSandbox();
  cutter = await ChannelCutter.make();
  await sandbox.buildImage("base");
}, 900_000);

afterAll(async () => {
  cutter[Symbol.dispose]();
  await sandbox[Symbol.asyncDispose]();
}, 60_000);

/** Small jobs whose tasks take some time, and leave files of which some take a while to fetch. */
class Jobs {
  readonly #dice: Dice;
  #count = 0;

  constructor(dice: Dice) {
    this.#dice = dice;
  }

  next(changes: Partial<CampaignJob> = {}, padding = 0): CampaignJob {
    const dice = this.#dice;
    const key = `job-${this.#count++}`;
    const inputs = Array.from({ length: dice.int(3, 12) }, (_, index) => {
      const failures = dice.chance(0.2) ? dice.int(1, 2) : 0;
      const bytes = dice.chance(0.5) ? dice.int(1, 4_000_000) : 0;
      return inputOf({ name: `${key}-${index}`, ms: dice.int(0, 600), failures, bytes }, padding);
    });
    return { key, inputs, how: dice.pick(["list", "lines"] as const), remove: dice.chance(0.15), ...changes };
  }
}

class Faults {
  readonly #dice: Dice;
  readonly #lives: GatewayLives;
  readonly #campaign: Campaign;
  readonly #jobs: Jobs;
  readonly #strikes: Strikes;

  constructor(options: { dice: Dice; lives: GatewayLives; campaign: Campaign; jobs: Jobs }) {
    this.#strikes = new Strikes({ run: sandbox.run, dice: options.dice, cutter });
    this.#dice = options.dice;
    this.#lives = options.lives;
    this.#campaign = options.campaign;
    this.#jobs = options.jobs;
  }

  async make(fault: Fault): Promise<void> {
    const dice = this.#dice;
    if (fault === "gateway" && dice.chance(0.3)) return this.#killInUpload();
    const [events, ms] = [dice.int(1, 12), dice.int(0, 400)];
    await this.#campaign.moreEvents(events);
    await wait(ms);
    const moment = `${events} events and ${ms} ms later`;
    if (fault === "gateway") await this.#killGateway(`${moment} the gateway was killed`);
    else await this.#strikeChild(fault, moment);
  }

  async #killInUpload(): Promise<void> {
    const job = this.#jobs.next({ once: this.#dice.chance(0.3) }, PADDED);
    const at = this.#dice.int(0, job.inputs.length);
    const ms = this.#dice.int(0, 20);
    await this.#campaign.strikeUpload(job, at, async () => {
      await wait(ms);
      await this.#killGateway(
        `${ms} ms after input ${at} of ${job.inputs.length} of ${job.key} the gateway was killed`,
      );
    });
  }

  async #killGateway(what: string): Promise<void> {
    this.#campaign.faults.push(`${what}, with ${runningChildren(sandbox.run).length} running children`);
    await this.#lives.kill();
    if (this.#dice.chance(0.2)) {
      const ms = this.#dice.int(0, 500);
      this.#campaign.faults.push(`the next one was killed ${ms} ms after its start`);
      this.#lives.spawn();
      await wait(ms);
      await this.#lives.kill();
    }
    await this.#lives.start();
    this.#campaign.problems.push(...strangers(this.#lives.pid));
  }

  async #strikeChild(fault: Exclude<Fault, "gateway">, moment: string): Promise<void> {
    this.#campaign.faults.push(`${moment} ${await this.#strikes.strike(fault)}`);
  }
}

/** What there is of runtimes other than that of this process. */
function strangers(pid: number): string[] {
  const own = (name: string) => name.split("-")[1] === String(pid);
  const names = [sandbox.run, sandbox.shm].flatMap((dir) => readdirSync(dir));
  const [name] = names.filter(own);
  const processes = processesOf(sandbox.run).filter(
    (vm) => !processesOf(join(sandbox.run, name ?? "-")).includes(vm),
  );
  return [
    ...names.filter((other) => !own(other)).map((other) => `${other} is left of a killed gateway`),
    ...processes.map((vm) => `process ${vm} is left of a killed gateway`),
  ];
}

test(
  "a gateway, children and channels that are lost 50 times leave one result for each task, and nothing else",
  async () => {
    const dir = join(sandbox.directory, "data");
    await using receiver = await Receiver.open(status(204));
    await using lives = new GatewayLives(() => cliGateway(sandbox, dir));
    const { client } = lives;
    const webhook = `http://${receiver.host}/`;
    const campaign = new Campaign({ client, worker, webhook, log: () => lives.log() });
    await campaign.tell(`Seed ${SEED}`, MOST_MS, async () => {
      const dice = new Dice(SEED);
      const jobs = new Jobs(new Dice(SEED + 1));
      const faults = new Faults({ dice, lives, campaign, jobs });
      const kinds = Object.entries(FAULTS).flatMap(([fault, count]) =>
        Array<Fault>(count).fill(fault as Fault),
      );
      let over = false;
      const striking = async () => {
        await lives.start();
        for (const kind of dice.shuffled(kinds)) await faults.make(kind);
        over = true;
      };
      const submitting = async () => {
        while (!over) await campaign.run(jobs.next());
      };
      await Promise.all([striking(), submitting(), submitting()]);
      await Promise.all(campaign.background);
      const kept = [...campaign.jobs].filter(([, { remove }]) => !remove).map(([id]) => id);
      for (const id of kept) await campaign.repeat(id);
      await checkCampaign(campaign);
      await eventually(async () => {
        const deliveries = kept.map((id) => Array.fromAsync(client.jobs.deliveries(id)));
        return (await Promise.all(deliveries)).flat().every(({ state }) => state === "delivered");
      });
      await checkDeliveries(campaign, receiver.received);
      expect(await lives.stop()).toBe(0);
      campaign.problems.push(...leftoversOf(dir), ...sandbox.leftovers());
      expect(campaign.problems).toEqual([]);
    });
  },
  MOST_MS + 60_000,
);
