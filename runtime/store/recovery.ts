import { endAttempt } from "./attempt-ends.ts";
import { JobChange } from "./job-change.ts";
import { type Ledger, Notes } from "./ledger.ts";
import { ofTask } from "./sqlite-job-rows.ts";

/** More than the events of claims between two durable writes. */
const LOST_EVENTS = 10_000;

/**
 * Voids all leases: whoever held them ended with the process that had opened the store before. Their
 * tasks wait again, and the attempt does not count.
 */
export function voidLeases(ledger: Ledger): void {
  const { database } = ledger;
  database.transaction(() => {
    const notes = new Notes();
    // Events of claims may be lost with the machine, after somebody has seen their ids: those are not used again.
    database.run(
      "UPDATE jobs SET events = events + ? WHERE phase = 'live' AND state IN ('queued', 'running', 'canceling')",
      LOST_EVENTS,
    );
    const leases = database.all<{ token: string; task: number }>("SELECT token, task FROM leases");
    for (const lease of leases) {
      const job = JobChange.bySeq(ledger, notes, ofTask(lease.task).seq);
      endAttempt(ledger, job, lease, { state: "queued", reason: "The gateway was restarted", delayMs: 0 });
      job.endIfDone();
      job.save();
      database.run("INSERT INTO abandoned (token, task) VALUES (?, ?)", lease.token, lease.task);
    }
    database.run("DELETE FROM leases");
  });
}
