import { randomBytes } from "node:crypto";
import type { AttemptEnd, Blocked, Claim, Lane, Queue } from "../jobs/ports.ts";
import { endAttempt } from "./attempt-ends.ts";
import { ClaimHeads } from "./claim-heads.ts";
import { JobChange } from "./job-change.ts";
import type { Ledger, Notes } from "./ledger.ts";
import { type JobRow, ofTask, taskIds } from "./sqlite-job-rows.ts";

/** A lease that is lost with the machine is void anyway. */
const noLoss = { durable: false };
/** Most waits that one look ends. */
const PROMOTED = 1000;
/** Most attempts that are named at once. */
const ABANDONED = 1000;

export class SqliteQueue implements Queue {
  readonly #ledger: Ledger;
  readonly #heads: ClaimHeads;
  /** Until when each lease holds, by the monotonic clock. */
  readonly #leases = new Map<string, number>();

  constructor(ledger: Ledger) {
    this.#ledger = ledger;
    this.#heads = new ClaimHeads(ledger.database);
  }

  async lanes(blocked: Blocked): Promise<Lane[]> {
    await this.#promoteDue();
    const lanes: Lane[] = [];
    let next = this.#laneAfter("(owner, priority, family) > (?, ?, ?)", "", -1, "");
    while (next) {
      const { owner, priority, family } = next;
      if (blocked.owners.has(owner)) {
        next = this.#laneAfter("owner > ?", owner);
      } else if (blocked.families.has(family)) {
        next = this.#laneAfter("(owner, priority, family) > (?, ?, ?)", owner, priority, family);
      } else {
        lanes.push({ owner, priority });
        next = this.#laneAfter("(owner, priority) > (?, ?)", owner, priority);
      }
    }
    return lanes;
  }

  async claim(
    lane: Lane,
    { blocked, host, leaseMs }: { blocked: Blocked; host: string; leaseMs: number },
  ): Promise<Claim | undefined> {
    if (blocked.owners.has(lane.owner)) return undefined;
    await this.#promoteDue();
    const token = randomBytes(12).toString("hex");
    const claim = await this.#ledger.change((notes) => {
      const row = this.#firstJob(lane, blocked);
      return row && this.#take(new JobChange(this.#ledger, notes, row), token, host);
    }, noLoss);
    if (claim) this.#leases.set(token, this.#ledger.clock.monotonic() + leaseMs);
    return claim;
  }

  async renew(tokens: readonly string[], leaseMs: number): Promise<string[]> {
    const until = this.#ledger.clock.monotonic() + leaseMs;
    const gone = tokens.filter((token) => !this.#leases.has(token));
    for (const token of tokens) if (this.#leases.has(token)) this.#leases.set(token, until);
    return gone;
  }

  async started(token: string, vm: string): Promise<void> {
    await this.#ledger.change((notes) => {
      const lease = this.#lease(token);
      if (!lease) return;
      this.#ledger.database.run("UPDATE tasks SET vm = ? WHERE id = ?", vm, lease.task);
      notes.jobs.add(lease.job);
    }, noLoss);
  }

  async finish(token: string, end: AttemptEnd): Promise<"recorded" | "stale"> {
    const outcome = await this.#ledger.change((notes) => this.#end(notes, token, end));
    this.#leases.delete(token);
    return outcome;
  }

  async expire(): Promise<string[]> {
    if (this.#overdue().length === 0) return [];
    const reason = "Its lease has run out";
    const error = { code: "INFRASTRUCTURE_FAILED", message: reason };
    const expired = await this.#ledger.change((notes) =>
      // Looked at again: a lease may have been prolonged while this has waited.
      this.#overdue().filter(
        (token) => this.#end(notes, token, { state: "queued", reason, error, delayMs: 0 }) === "recorded",
      ),
    );
    for (const token of expired) this.#leases.delete(token);
    return expired;
  }

  async abandoned(): Promise<{ job: string; index: number; token: string }[]> {
    const rows = this.#ledger.database.all<{ token: string; task: number; job: string }>(
      "SELECT token, task, jobs.id AS job FROM abandoned JOIN jobs ON jobs.seq = abandoned.task >> 20 LIMIT ?",
      ABANDONED,
    );
    return rows.map(({ token, task, job }) => ({ job, index: ofTask(task).index, token }));
  }

  async cleared(tokens: readonly string[]): Promise<void> {
    await this.#ledger.database.write(() => {
      for (const token of tokens) this.#ledger.database.run("DELETE FROM abandoned WHERE token = ?", token);
    });
  }

  onAbandoned(listener: () => void): Disposable {
    return this.#ledger.abandoned.add(listener);
  }

  async nextMs(): Promise<number | undefined> {
    const { clock, database } = this.#ledger;
    const waits = [...this.#leases.values()].map((until) => until - clock.monotonic());
    const delayed = database.get<{ ready_at: number }>(
      "SELECT ready_at FROM tasks INDEXED BY tasks_delayed WHERE ready_at > 0 ORDER BY ready_at LIMIT 1",
    );
    if (delayed) waits.push(delayed.ready_at - this.#ledger.time());
    return waits.length === 0
      ? undefined
      : Math.max(
          0,
          waits.reduce((a, b) => Math.min(a, b)),
        );
  }

  onReady(listener: () => void): Disposable {
    return this.#ledger.ready.add(listener);
  }

  #end(notes: Notes, token: string, end: AttemptEnd): "recorded" | "stale" {
    const lease = this.#lease(token);
    if (!lease) return "stale";
    this.#ledger.database.run("DELETE FROM leases WHERE token = ?", token);
    const job = JobChange.bySeq(this.#ledger, notes, ofTask(lease.task).seq);
    endAttempt(this.#ledger, job, { ...lease, token }, end);
    job.endIfDone();
    job.save();
    return "recorded";
  }

  #lease(token: string): { task: number; job: string } | undefined {
    return this.#ledger.database.get(
      "SELECT task, jobs.id AS job FROM leases JOIN jobs ON jobs.seq = leases.task >> 20 WHERE token = ?",
      token,
    );
  }

  #overdue(): string[] {
    const now = this.#ledger.clock.monotonic();
    return [...this.#leases].filter(([, until]) => until <= now).map(([token]) => token);
  }

  /** Tasks whose wait is over become ready. */
  async #promoteDue(): Promise<void> {
    if (this.#due(1).length === 0) return;
    await this.#ledger.database.write(() => {
      for (const { id, job } of this.#due(PROMOTED)) {
        this.#ledger.database.run("UPDATE tasks SET ready_at = 0 WHERE id = ?", id);
        this.#ledger.database.run(
          "UPDATE jobs SET ready = ready + 1 WHERE seq = ? AND state IN ('queued', 'running')",
          job,
        );
      }
    }, noLoss);
  }

  #due(limit: number): { id: number; job: number }[] {
    return this.#ledger.database.all(
      `SELECT id, job FROM tasks INDEXED BY tasks_delayed WHERE ready_at > 0 AND ready_at <= ?
        ORDER BY ready_at LIMIT ?`,
      this.#ledger.time(),
      limit,
    );
  }

  #laneAfter(
    condition: string,
    ...at: (string | number)[]
  ): { owner: string; priority: number; family: string } | undefined {
    return this.#ledger.database.get(
      `SELECT owner, priority, family FROM jobs INDEXED BY jobs_lanes WHERE ready > 0 AND ${condition}
        ORDER BY owner, priority, family LIMIT 1`,
      ...at,
    );
  }

  #firstJob({ owner, priority }: Lane, blocked: Blocked): JobRow | undefined {
    const found = this.#ledger.database.get<{ seq: number }>(
      `SELECT seq FROM jobs INDEXED BY jobs_first WHERE ready > 0 AND owner = ? AND priority = ?
        AND family NOT IN (SELECT value FROM json_each(?)) ORDER BY place LIMIT 1`,
      ...[owner, priority, JSON.stringify([...blocked.families])],
    );
    return found && this.#ledger.database.get<JobRow>("SELECT * FROM jobs WHERE seq = ?", found.seq);
  }

  #take(job: JobChange, token: string, host: string): Claim {
    const { database } = this.#ledger;
    const { row } = job;
    if (row.state === "queued") job.enter("running", "The first task has begun");
    const reason = `Taken by ${host}`;
    const task = this.#takeWaiting(job, reason) ?? this.#takeFresh(job, reason);
    row.ready -= 1;
    database.run("INSERT INTO leases (token, task) VALUES (?, ?)", token, task.id);
    const { index } = ofTask(task.id);
    const { attempt } = task;
    job.event({ type: "task.running", reason, task: index, attempt });
    job.save();
    const input = database.get<{ input: string }>("SELECT input FROM inputs WHERE id = ?", task.id)?.input;
    return {
      ...this.#heads.get(row.seq),
      ...{ token, job: row.id, index, count: row.total, attempt, input },
      ...{ infrastructureFailures: task.failures, owner: row.owner, family: row.family },
      ...(task.queuedAt === undefined ? {} : { waitedMs: Math.max(0, job.now - task.queuedAt) }),
    };
  }

  #takeWaiting(job: JobChange, reason: string): Taken | undefined {
    const { database } = this.#ledger;
    const task = database.get<{ id: number; state: "queued" | "retrying"; changed_at: number }>(
      "SELECT id, state, changed_at FROM tasks INDEXED BY tasks_ready WHERE job = ? AND ready_at = 0 ORDER BY id LIMIT 1",
      job.row.seq,
    );
    if (!task) return undefined;
    job.move(task.state, "running");
    const taken = database.get<Taken>(
      `UPDATE tasks SET state = 'running', reason = ?, attempt = attempt + 1, ready_at = NULL, changed_at = ?,
        started_at = ?, vm = NULL, error = NULL WHERE id = ? RETURNING id, attempt, failures`,
      ...[reason, job.now, job.now, task.id],
    )!;
    const delayed = task.state === "retrying" || taken.failures > 0;
    return delayed ? taken : { ...taken, queuedAt: task.changed_at };
  }

  #takeFresh(job: JobChange, reason: string): Taken {
    const { row, now } = job;
    const id = taskIds(row.seq).first + row.fresh;
    row.fresh += 1;
    job.move("queued", "running");
    this.#ledger.database.run(
      `INSERT INTO tasks (id, job, state, reason, attempt, changed_at, started_at)
        VALUES (?, ?, 'running', ?, 1, ?, ?)`,
      ...[id, row.seq, reason, now, now],
    );
    return { id, attempt: 1, failures: 0, queuedAt: row.created_at };
  }
}

interface Taken {
  id: number;
  attempt: number;
  failures: number;
  queuedAt?: number;
}
