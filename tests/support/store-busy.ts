/**
 * A gateway's store in a process of its own, to be killed: opens the directory of its first argument and
 * prints "open". With "work" as the second it then changes jobs without end, and prints what is recorded
 * as soon as the store says so: `JOB INDEX STATE` for a finished task, `JOB` for a submitted job.
 */
import { openStore } from "../../runtime/store/open.ts";
import { claim, FAILED, newJob, REQUEUED, SUCCEEDED } from "./store-jobs.ts";

/** So many that jobs are still being submitted while others are killed, so few that all can be finished. */
const MOST_WAITING = 4000;

const [dir, task] = process.argv.slice(2);
const store = await openStore({ dir: dir! });
console.log("open");
setInterval(() => undefined, 60_000);
if (task === "work") await Promise.all([submitting(), working(0), working(1), changing()]);

async function submitting(): Promise<void> {
  for (let count = 0; ; count += 1) {
    while ((await store.jobs.load()).waitingTasks > MOST_WAITING) {
      await new Promise((resolve) => setImmediate(resolve));
    }
    await using draft = await store.jobs.draft(newJob());
    await draft.add(Array.from({ length: count % 7 }, (_, at) => String(at)));
    await draft.addCount(3 + (count % 10 === 1 ? 1500 : 0));
    if (count % 3 === 0) continue;
    const { stored } = await draft.commit("hash");
    console.log(stored.job.id);
  }
}

async function working(offset: number): Promise<void> {
  for (let count = offset; ; count += 1) {
    const claimed = await claim(store);
    if (!claimed) {
      await new Promise((resolve) => setImmediate(resolve));
      continue;
    }
    const { token, job, index } = claimed;
    await store.queue.started(token, `vm-${count}`);
    const end = count % 11 === 0 ? FAILED : count % 5 === 0 ? REQUEUED : SUCCEEDED;
    const outcome = await store.queue.finish(token, end);
    if (outcome === "recorded" && end !== REQUEUED) console.log(`${job} ${index} ${end.state}`);
  }
}

async function changing(): Promise<void> {
  for (let count = 0; ; count += 1) {
    const { items } = await store.jobs.list({ limit: 20, state: count % 2 ? "running" : "queued" });
    const some = items.at(count % 20);
    if (some && some.job.tasks.total > 1000 && count % 4 < 3) await store.jobs.cancel(some.job.id, "enough");
    else await new Promise((resolve) => setTimeout(resolve, 5));
  }
}
