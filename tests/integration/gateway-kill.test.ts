import { expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as wait } from "node:timers/promises";
import { openStore } from "../../runtime/store/open.ts";
import { rejection } from "../support/agent-peer.ts";
import { Dice } from "../support/dice.ts";
import { Campaign, type CampaignJob } from "../support/gateway-campaign.ts";
import { checkCampaign, checkDeliveries } from "../support/gateway-campaign-checks.ts";
import { GatewayLives, scriptedGateway } from "../support/gateway-lives.ts";
import { eventually } from "../support/gateway-sandbox.ts";
import { Receiver, status } from "../support/gateway-webhooks.ts";
import { inputOf } from "../support/gateway-work.ts";
import { isPurged, leftoversOf } from "../support/store-leftovers.ts";
import { temporaryDirectory } from "../support/vm.ts";

const SEED = 20_260_917;
const KILLS = 60;
const TASKS = 10_000;
/** Longest life of a gateway in milliseconds, from its first answer; and what none takes to start. */
const LIFE_MS = 250;
const START_MS = 300;

/** Length of an input in a submission that is cut off: many of them have arrived by then. */
const PADDED = 5000;
/** A bound, no expectation. */
const MOST_MS = 200_000;

/** Jobs of all sizes and fates, each with a key of its own. */
class Jobs {
  tasks = 0;
  readonly #dice: Dice;
  #count = 0;

  constructor(dice: Dice) {
    this.#dice = dice;
  }

  next(changes: Partial<CampaignJob> = {}, padding = 300): CampaignJob {
    const dice = this.#dice;
    const key = `job-${this.#count++}`;
    const size = dice.chance(0.2) ? dice.int(1, 10) : dice.int(50, 900);
    this.tasks += size;
    const inputs = Array.from({ length: size }, (_, index) => {
      const failures = dice.chance(0.05) ? dice.int(1, 2) : 0;
      const bytes = dice.chance(0.1) ? dice.int(1, 20_000) : 0;
      return inputOf(
        { name: `${key}-${index}`, ms: dice.chance(0.2) ? dice.int(1, 20) : 0, failures, bytes },
        padding,
      );
    });
    const fate = dice.next();
    return {
      key,
      inputs,
      how: dice.pick(["list", "lines"] as const),
      cancelAfter: fate < 0.1 ? dice.int(1, size) : undefined,
      remove: fate > 0.85,
      ...changes,
    };
  }
}

/** Kills of one gateway after another, each in a way of its own. */
class Killer {
  readonly #dice: Dice;
  readonly #lives: GatewayLives;
  readonly #campaign: Campaign;
  readonly #jobs: Jobs;
  readonly #dir: string;

  constructor(options: { dice: Dice; lives: GatewayLives; campaign: Campaign; jobs: Jobs; dir: string }) {
    this.#dice = options.dice;
    this.#lives = options.lives;
    this.#campaign = options.campaign;
    this.#jobs = options.jobs;
    this.#dir = options.dir;
  }

  /** Kills the gateway that lives, and starts another one. */
  async kill(): Promise<void> {
    const dice = this.#dice;
    const way = dice.next();
    if (way < 0.15) await this.#killInUpload();
    else if (way < 0.3) await this.#killInStart();
    else await this.#killAfter(dice.int(0, LIFE_MS));
    if (dice.chance(0.1)) await this.#startTwo();
    else await this.#lives.start();
    if (dice.chance(0.2)) await this.#refuseAnother();
  }

  async #killAfter(ms: number): Promise<void> {
    this.#note(`after ${ms} ms`);
    await wait(ms);
    await this.#lives.kill();
  }

  async #killInUpload(): Promise<void> {
    const fate = { once: this.#dice.chance(0.3), cancelAfter: undefined, remove: false };
    const job = this.#jobs.next(fate, PADDED);
    const at = this.#dice.int(0, job.inputs.length);
    const ms = this.#dice.int(0, 30);
    this.#note(`${ms} ms after input ${at} of ${job.inputs.length} of ${job.key}`);
    await this.#campaign.strikeUpload(job, at, async () => {
      await wait(ms);
      await this.#lives.kill();
    });
  }

  async #killInStart(): Promise<void> {
    const ms = this.#dice.int(0, START_MS);
    this.#note(`and the next one ${ms} ms after its start`);
    await this.#lives.kill();
    this.#lives.spawn();
    await wait(ms);
    await this.#lives.kill();
  }

  async #startTwo(): Promise<void> {
    this.#note("before two were started at once");
    expect(await this.#lives.startTwo()).toContain("DATA_IN_USE");
  }

  async #refuseAnother(): Promise<void> {
    const error = await rejection(openStore({ dir: this.#dir }));
    expect([error.code, error.message.includes(`process ${this.#lives.pid}`)]).toEqual(["DATA_IN_USE", true]);
  }

  #note(fault: string): void {
    this.#campaign.faults.push(`killed ${fault}`);
  }
}

/** Removes all jobs, and kills the gateway while it clears up behind them; another one goes on with that. */
async function removeAll({ jobs, client }: Campaign, lives: GatewayLives): Promise<void> {
  const kept = [...jobs].filter(([, { remove }]) => !remove);
  await Promise.all(kept.map(([id]) => client.jobs.remove(id)));
  await lives.kill();
  await lives.start();
  expect(await Array.fromAsync(client.jobs.list())).toEqual([]);
}

test(
  `a gateway that is killed ${KILLS} times has one result for each of ${TASKS} tasks`,
  async () => {
    using directory = temporaryDirectory();
    const dir = join(directory.path, "data");
    await using receiver = await Receiver.open(status(204));
    await using lives = new GatewayLives(() => scriptedGateway(dir));
    const { client } = lives;
    const worker = { image: "base", command: ["work"] };
    const webhook = `http://${receiver.host}/`;
    const campaign = new Campaign({ client, worker, webhook, log: () => lives.log() });
    await campaign.tell(`Seed ${SEED}`, MOST_MS, async () => {
      const jobs = new Jobs(new Dice(SEED));
      const killer = new Killer({ dice: new Dice(SEED + 1), lives, campaign, jobs, dir });
      let kills = 0;
      const killing = async () => {
        await lives.start();
        for (; kills < KILLS; kills++) await killer.kill();
      };
      const submitting = async () => {
        while (kills < KILLS || jobs.tasks < TASKS) await campaign.run(jobs.next());
      };
      await Promise.all([killing(), submitting(), submitting(), submitting()]);
      await Promise.all(campaign.background);
      for (const [id, { remove }] of campaign.jobs) {
        if (!remove) await campaign.repeat(id);
      }
      await checkCampaign(campaign);
      await eventually(async () => {
        const ids = [...campaign.jobs].filter(([, { remove }]) => !remove).map(([id]) => id);
        const deliveries = ids.map((id) => Array.fromAsync(client.jobs.deliveries(id)));
        return (await Promise.all(deliveries)).flat().every(({ state }) => state === "delivered");
      });
      await checkDeliveries(campaign, receiver.received);
      await endPurged(lives, dir);
      campaign.problems.push(...leftoversOf(dir));
      await lives.start();
      await removeAll(campaign, lives);
      await eventually(() => String(readdirSync(join(dir, "blobs"))) === "~temporary");
      await endPurged(lives, dir);
      campaign.problems.push(...leftoversOf(dir));
      expect(campaign.problems).toEqual([]);
    });
  },
  MOST_MS + 10_000,
);

/**
 * Ends the gateway when nothing is left of removed jobs. Nobody waits for that, and nothing tells of it; the
 * next gateway goes on with it where this one has ended.
 */
async function endPurged(lives: GatewayLives, dir: string): Promise<void> {
  for (;;) {
    expect(await lives.stop()).toBe(0);
    if (isPurged(dir)) return;
    await lives.start();
  }
}
