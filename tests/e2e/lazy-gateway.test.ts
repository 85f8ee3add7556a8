import { afterAll, beforeAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../errors/errors.ts";
import type { WorkerSpecInput } from "../../runtime/api/mod.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { CliSandbox } from "../support/cli.ts";
import { Dice } from "../support/dice.ts";
import { Campaign, type CampaignJob } from "../support/gateway-campaign.ts";
import { checkCampaign } from "../support/gateway-campaign-checks.ts";
import { cliGateway, GatewayLives } from "../support/gateway-lives.ts";
import { inputOf, WORK_SCRIPT } from "../support/gateway-work.ts";
import { memserversOf, until } from "../support/remote-site.ts";
import { leftoversOf } from "../support/store-leftovers.ts";
import { SETUP_MS, stopProcess } from "../support/vm.ts";

/** A bound, no expectation. */
const MOST_MS = 150_000;

/** Its tasks look at memory that they have page by page before they do their work. */
const worker: WorkerSpecInput = {
  image: "base",
  memory: "lazy",
  memoryMiB: 128,
  warmUp: ["/bin/sh", "-c", "head -c 2097152 /dev/urandom > /run/noise; sha256sum < /run/noise > /run/sum"],
  command: ["/bin/sh", "-c", `[ "$(sha256sum < /run/noise)" = "$(cat /run/sum)" ] || exit 9\n${WORK_SCRIPT}`],
};

let sandbox: CliSandbox;

setDefaultTimeout(MOST_MS + 30_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("base");
}, SETUP_MS);

afterAll(async () => {
  await sandbox[Symbol.asyncDispose]();
});

/** Small tasks, of which some leave files. */
function jobOf(key: string, tasks: number): CampaignJob {
  const dice = new Dice(20_260_407);
  const inputs = Array.from({ length: tasks }, (_, index) =>
    inputOf({
      name: `${key}-${index}`,
      ms: dice.int(0, 200),
      failures: 0,
      bytes: dice.chance(0.2) ? 100_000 : 0,
    }),
  );
  return { key, inputs, how: "list" };
}

/** Process id of the memserver of a gateway. */
async function memserverOf(gateway: number): Promise<number> {
  return await until(
    () => memserversOf(sandbox.run).find((pid) => parentOf(pid) === gateway),
    "it has a memserver",
  );
}

/** Process id of a process's parent; undefined when it is gone. */
function parentOf(pid: number): number | undefined {
  try {
    return Number(/^PPid:\t(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]);
  } catch (error) {
    if (codeOf(error) === "ENOENT" || codeOf(error) === "ESRCH") return undefined;
    throw error;
  }
}

/** Runs a job of lazy tasks while something is done to its gateway, and checks all that is left of both. */
async function withFaults(
  key: string,
  tasks: number,
  faults: (lives: GatewayLives, campaign: Campaign) => Promise<void>,
) {
  const dir = join(sandbox.directory, key);
  await using lives = new GatewayLives(() => cliGateway(sandbox, dir));
  const campaign = new Campaign({ client: lives.client, worker, log: () => lives.log() });
  await campaign.tell(key, MOST_MS, async () => {
    await lives.start();
    const running = campaign.run(jobOf(key, tasks));
    await faults(lives, campaign);
    await running;
    await checkCampaign(campaign);
    expect(await lives.stop()).toBe(0);
    campaign.problems.push(...leftoversOf(dir), ...sandbox.leftovers());
    expect(campaign.problems).toEqual([]);
  });
  return [...campaign.events.values()].flat();
}

test("tasks outlive memservers that are killed, and one that hangs: one result each, at the first attempt", async () => {
  const events = await withFaults("memservers", 40, async (lives, campaign) => {
    await campaign.moreEvents(4);
    for (const fault of ["kill", "kill", "kill", "stop", "kill", "kill"]) {
      const pid = await memserverOf(lives.pid);
      campaign.faults.push(`${fault} of ${pid}`);
      if (fault === "stop") await stopProcess(pid);
      else process.kill(pid, "SIGKILL");
      await until(async () => (await memserverOf(lives.pid)) !== pid, "there is another memserver");
      await campaign.moreEvents(6);
    }
  });
  // Whoever was just being started is started again; a child that runs is not lost.
  const lost = events.filter(({ type, vm }) => type === "task.queued" && vm !== undefined);
  expect(lost).toEqual([]);
});

test("a gateway that is killed takes its memserver with it, and the next one goes on", async () => {
  await withFaults("gateways", 12, async (lives, campaign) => {
    await campaign.moreEvents(6);
    const memserver = await memserverOf(lives.pid);
    await lives.kill();
    await until(() => !processesOf(sandbox.run).includes(memserver), "the memserver is gone");
    await lives.start();
    expect(await memserverOf(lives.pid)).not.toBe(memserver);
  });
});
