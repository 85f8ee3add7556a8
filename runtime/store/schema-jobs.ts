/**
 * Jobs, their tasks and what is known of them.
 *
 * A task's id is `job * 2^20 + index`, so that the tasks of a job lie side by side. A task has a row only
 * from its first claim on: those from the job's `fresh` on are queued and have none, so a job of a million
 * tasks costs no more than its inputs.
 */
export const jobsSchema = `
  CREATE TABLE specs (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL UNIQUE,
    spec TEXT NOT NULL
  ) STRICT;

  CREATE TABLE jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    -- draft: not committed; live; removed: its rows are being deleted
    phase TEXT NOT NULL,
    -- what is done to its tasks in steps: cancel, retry or remove
    step TEXT,
    -- retry: tasks that ended up to this one are queued again
    step_until INTEGER,
    -- in the order of commits
    place INTEGER,
    owner TEXT NOT NULL,
    family TEXT NOT NULL,
    priority INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    total INTEGER NOT NULL DEFAULT 0,
    queued INTEGER NOT NULL DEFAULT 0,
    running INTEGER NOT NULL DEFAULT 0,
    retrying INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    canceled INTEGER NOT NULL DEFAULT 0,
    -- index of the first task that was never claimed
    fresh INTEGER NOT NULL DEFAULT 0,
    -- tasks that can be claimed now
    ready INTEGER NOT NULL DEFAULT 0,
    -- number of the last event, and of the last end of a task
    events INTEGER NOT NULL DEFAULT 0,
    ends INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER
  ) STRICT;
  CREATE UNIQUE INDEX jobs_place ON jobs (place) WHERE phase = 'live';
  CREATE INDEX jobs_state ON jobs (state, place) WHERE phase = 'live';
  CREATE INDEX jobs_owner ON jobs (owner, place) WHERE phase = 'live';
  CREATE INDEX jobs_owner_state ON jobs (owner, state, place) WHERE phase = 'live';
  CREATE INDEX jobs_lanes ON jobs (owner, priority, family) WHERE ready > 0;
  CREATE INDEX jobs_first ON jobs (owner, priority, place, family) WHERE ready > 0;
  CREATE INDEX jobs_step ON jobs (seq) WHERE step IS NOT NULL;
  CREATE INDEX jobs_draft ON jobs (seq) WHERE phase = 'draft';

  -- What does not change of a job. It may be long, and a row is always written as a whole.
  CREATE TABLE heads (
    job INTEGER PRIMARY KEY REFERENCES jobs (seq),
    name TEXT,
    worker_name TEXT,
    worker_version INTEGER,
    spec INTEGER NOT NULL REFERENCES specs (id),
    image TEXT NOT NULL,
    command TEXT NOT NULL,
    retry TEXT NOT NULL,
    timeout_ms INTEGER,
    tags TEXT NOT NULL,
    webhook TEXT,
    traceparent TEXT,
    env TEXT NOT NULL
  ) STRICT;
  CREATE INDEX heads_spec ON heads (spec);

  CREATE TABLE job_tags (
    tag TEXT NOT NULL,
    place INTEGER NOT NULL,
    job INTEGER NOT NULL,
    PRIMARY KEY (tag, place)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE inputs (
    id INTEGER PRIMARY KEY,
    input TEXT NOT NULL
  ) STRICT;

  CREATE TABLE tasks (
    id INTEGER PRIMARY KEY,
    job INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    -- how often the infrastructure has failed it
    failures INTEGER NOT NULL DEFAULT 0,
    -- while it waits: 0 when it can be claimed, else the queue's time from which it can
    ready_at REAL,
    -- its place among the ends of the job's tasks
    ended INTEGER,
    changed_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    vm TEXT,
    exit_code INTEGER,
    signal TEXT,
    error TEXT,
    stdout_truncated INTEGER NOT NULL DEFAULT 0,
    artifacts INTEGER NOT NULL DEFAULT 0,
    -- attempt that left the artifacts: its blobs are theirs
    token TEXT
  ) STRICT;
  CREATE INDEX tasks_state ON tasks (job, state);
  CREATE INDEX tasks_ended ON tasks (job, ended) WHERE ended IS NOT NULL;
  CREATE INDEX tasks_ready ON tasks (job) WHERE ready_at = 0;
  CREATE INDEX tasks_delayed ON tasks (ready_at) WHERE ready_at > 0;

  CREATE TABLE outputs (
    id INTEGER PRIMARY KEY,
    -- UTF-8; as TEXT, Deno would end it at the first NUL
    stdout BLOB NOT NULL
  ) STRICT;

  CREATE TABLE artifacts (
    task INTEGER NOT NULL,
    path TEXT NOT NULL,
    size INTEGER NOT NULL,
    mode INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (task, path)
  ) STRICT, WITHOUT ROWID;

  -- Until when a lease holds is known to the process alone: none outlives it.
  CREATE TABLE leases (
    token TEXT PRIMARY KEY,
    task INTEGER NOT NULL UNIQUE
  ) STRICT, WITHOUT ROWID;

  -- Attempts whose blobs may still be there and are nobody's: their lease was void when the store was opened,
  -- or their task was queued again.
  CREATE TABLE abandoned (
    token TEXT PRIMARY KEY,
    task INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX abandoned_task ON abandoned (task);

  CREATE TABLE events (
    job INTEGER NOT NULL,
    id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    type TEXT NOT NULL,
    reason TEXT NOT NULL,
    task INTEGER,
    attempt INTEGER,
    vm TEXT,
    error TEXT,
    PRIMARY KEY (job, id)
  ) STRICT, WITHOUT ROWID;

  -- What each key has now.
  CREATE TABLE loads (
    owner TEXT PRIMARY KEY,
    active_jobs INTEGER NOT NULL,
    waiting_tasks INTEGER NOT NULL,
    running_tasks INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE idempotency (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,
    body_hash TEXT NOT NULL,
    job INTEGER NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (owner, key)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX idempotency_at ON idempotency (at);
  CREATE INDEX idempotency_job ON idempotency (job);

  -- Jobs whose blobs and logs may still be there.
  CREATE TABLE removed (
    id TEXT PRIMARY KEY
  ) STRICT, WITHOUT ROWID;
`;
