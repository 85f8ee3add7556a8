/** All that is not jobs: workers, keys, secrets, messages to webhooks, hosts. Times are ms since 1970. */
export const adminSchema = `
  -- A removed one stays, so that no later version has the number of an earlier one.
  CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    -- NULL when it was removed
    current INTEGER,
    last INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE worker_versions (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL REFERENCES workers (name),
    version INTEGER NOT NULL,
    spec TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (name, version)
  ) STRICT;

  CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    scopes TEXT NOT NULL,
    limits TEXT NOT NULL,
    hash TEXT NOT NULL,
    created_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    sealed BLOB NOT NULL,
    -- ids of the keys whose jobs may have it, as JSON; NULL for all
    keys TEXT,
    created_at INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE deliveries (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    job TEXT NOT NULL,
    event TEXT NOT NULL,
    url TEXT NOT NULL,
    -- scheme, host and port of it
    receiver TEXT NOT NULL,
    secret TEXT,
    body TEXT NOT NULL,
    state TEXT NOT NULL,
    -- by the monotonic clock of the process; 0: at once
    due REAL NOT NULL
  ) STRICT;
  CREATE INDEX deliveries_pending ON deliveries (receiver, due) WHERE state = 'pending';
  CREATE INDEX deliveries_job ON deliveries (job);

  -- First pending message of each receiver: many messages to one are passed by in one step.
  CREATE TABLE receivers (
    receiver TEXT PRIMARY KEY,
    due REAL NOT NULL,
    seq INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX receivers_due ON receivers (due, seq);

  CREATE TABLE delivery_attempts (
    id INTEGER PRIMARY KEY,
    delivery INTEGER NOT NULL REFERENCES deliveries (seq) ON DELETE CASCADE,
    at INTEGER NOT NULL,
    status INTEGER,
    error TEXT,
    ms INTEGER NOT NULL
  ) STRICT;
  CREATE INDEX delivery_attempts_delivery ON delivery_attempts (delivery);

  CREATE TABLE hosts (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    accel TEXT,
    cores INTEGER NOT NULL,
    memory_bytes INTEGER NOT NULL,
    slots INTEGER NOT NULL,
    running INTEGER NOT NULL,
    up INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    seen_at INTEGER NOT NULL
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE set_aside (
    host TEXT NOT NULL REFERENCES hosts (id) ON DELETE CASCADE,
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (host, kind, id)
  ) STRICT, WITHOUT ROWID;
`;
