import { join } from "node:path";
import { DatabaseSync } from "node:sqlite";

const STATES = ["queued", "running", "retrying", "succeeded", "failed", "canceled"] as const;

type Counts = Record<(typeof STATES)[number], number>;
type JobCounts = Counts & {
  seq: number;
  id: string;
  phase: string;
  owner: string;
  state: string;
  total: number;
  fresh: number;
  ready: number;
  ends: number;
};

/**
 * Counts what lies in a SQLite store that is closed, and compares it with the counters that it keeps.
 * Returns what does not fit.
 */
export function recount(dir: string): string[] {
  const database = new DatabaseSync(join(dir, "flurry.db"));
  try {
    const jobs = database.prepare("SELECT * FROM jobs").all() as unknown as JobCounts[];
    return [
      ...jobs.flatMap((job) => recountJob(database, job)),
      ...recountLoads(database, jobs),
      ...orphans(database),
    ];
  } finally {
    database.close();
  }
}

function recountJob(database: DatabaseSync, job: JobCounts): string[] {
  if (job.phase !== "live") return [];
  const rows = database
    .prepare("SELECT state, count(*) AS n FROM tasks WHERE job = ? GROUP BY state")
    .all(job.seq) as { state: keyof Counts; n: number }[];
  const counted = Object.fromEntries(STATES.map((state) => [state, 0])) as Counts;
  for (const { state, n } of rows) counted[state] = n;
  counted.queued += job.total - job.fresh;
  const wrong = STATES.filter((state) => counted[state] !== job[state]).map(
    (state) => `${job.id} has ${job[state]} ${state}, counted ${counted[state]}`,
  );
  const one = (sql: string) => (database.prepare(sql).get(job.seq) as { n: number }).n;
  const claimable = job.state === "queued" || job.state === "running";
  const ready = claimable
    ? job.total - job.fresh + one("SELECT count(*) AS n FROM tasks WHERE job = ? AND ready_at = 0")
    : 0;
  if (ready !== job.ready) wrong.push(`${job.id} has ${job.ready} ready, counted ${ready}`);
  const rowsBelowFresh = one("SELECT count(*) AS n FROM tasks WHERE job = ?");
  if (rowsBelowFresh !== job.fresh) wrong.push(`${job.id} has ${rowsBelowFresh} rows of ${job.fresh}`);
  const ended = one("SELECT count(DISTINCT ended) AS n FROM tasks WHERE job = ? AND ended IS NOT NULL");
  if (ended !== job.succeeded + job.failed + job.canceled) wrong.push(`${job.id} has ${ended} ends`);
  const leases = one(
    "SELECT count(*) AS n FROM leases JOIN tasks ON tasks.id = task WHERE job = ? AND state = 'running'",
  );
  if (leases !== job.running) wrong.push(`${job.id} has ${leases} leases for ${job.running} running tasks`);
  return wrong;
}

function recountLoads(database: DatabaseSync, jobs: readonly JobCounts[]): string[] {
  const active = jobs.filter(
    ({ phase, state }) => phase === "live" && !/^(succeeded|failed|canceled)$/.test(state),
  );
  const loads = database.prepare("SELECT * FROM loads").all() as Record<string, number | string>[];
  return loads.flatMap((load) => {
    const own = active.filter(({ owner }) => owner === load.owner);
    const live = jobs.filter(({ owner, phase }) => owner === load.owner && phase === "live");
    const sum = (of: (job: JobCounts) => number) => live.reduce((total, job) => total + of(job), 0);
    const counted = [own.length, sum((job) => job.queued + job.retrying), sum((job) => job.running)];
    const kept = [load.active_jobs, load.waiting_tasks, load.running_tasks];
    return String(kept) === String(counted) ? [] : [`key "${load.owner}" has ${kept}, counted ${counted}`];
  });
}

/** Rows whose job or task is not there. */
function orphans(database: DatabaseSync): string[] {
  const byTask = (table: string, id = "id") =>
    `SELECT count(*) AS n, '${table}' AS name FROM ${table}
      WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE seq = ${table}.${id} >> 20)`;
  return [
    ...["tasks", "inputs", "outputs"].map((table) => byTask(table)),
    ...["artifacts", "leases", "abandoned"].map((table) => byTask(table, "task")),
    "SELECT count(*) AS n, 'events' AS name FROM events WHERE NOT EXISTS (SELECT 1 FROM jobs WHERE seq = events.job)",
    "SELECT count(*) AS n, 'specs' AS name FROM specs WHERE NOT EXISTS (SELECT 1 FROM heads WHERE spec = specs.id)",
  ].flatMap((sql) => {
    const { n, name } = database.prepare(sql).get() as { n: number; name: string };
    return n === 0 ? [] : [`${n} ${name} belong to nothing`];
  });
}
