import { describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import { Database } from "../../runtime/store/database.ts";
import { migrate, migrations } from "../../runtime/store/migrations.ts";
import { openStore } from "../../runtime/store/open.ts";
import { removeRows } from "../../runtime/store/remove-rows.ts";
import { taskIds } from "../../runtime/store/sqlite-job-rows.ts";
import { rejection } from "../support/agent-peer.ts";
import { submit } from "../support/store-jobs.ts";
import { temporaryDirectory } from "../support/vm.ts";

describe("Database", () => {
  test("writes of one turn share a transaction; one that throws undoes its own changes only", async () => {
    using opened = open();
    const { database } = opened;
    database.exec("CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT");
    const insert = (value: number) => () => database.run("INSERT INTO t (a) VALUES (?)", value);
    const failure = new Error("of the work");
    const outcomes = await Promise.allSettled([
      database.write(insert(1)),
      database.write(() => {
        insert(2)();
        throw failure;
      }),
      database.write(insert(1)),
      database.write(insert(3)),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "rejected", "fulfilled"]);
    expect(outcomes[1]).toEqual({ status: "rejected", reason: failure });
    expect((outcomes[2] as PromiseRejectedResult).reason).toMatchObject({ code: "STORE_FAILED" });
    expect(database.all("SELECT a FROM t").map((row) => ({ ...(row as object) }))).toEqual([
      { a: 1 },
      { a: 3 },
    ]);
  });

  test("writes whose shared transaction is lost are run one by one", async () => {
    using opened = open();
    const { database } = opened;
    database.exec("CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT");
    const outcomes = await Promise.allSettled([
      database.write(() => database.run("INSERT INTO t (a) VALUES (1)")),
      // As a full disk does it in the middle of a statement.
      database.write(() => {
        database.run("INSERT INTO t (a) VALUES (2)");
        database.exec("ROLLBACK");
        throw new FlurryError("NO_SPACE", "Full");
      }),
      database.write(() => database.run("INSERT INTO t (a) VALUES (3)")),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled"]);
    expect((outcomes[1] as PromiseRejectedResult).reason).toMatchObject({ code: "NO_SPACE" });
    expect(database.get<{ n: number }>("SELECT sum(a) AS n FROM t")!.n).toBe(4);
  });

  test("writes that wait are done when it is closed", async () => {
    using directory = temporaryDirectory();
    const file = join(directory.path, "a.db");
    const database = new Database(file);
    database.exec("CREATE TABLE t (a INTEGER) STRICT");
    const writing = database.write(() => database.run("INSERT INTO t (a) VALUES (1)"));
    database[Symbol.dispose]();
    expect(await writing).toBe(1);
    using again = new Database(file);
    expect(again.get<{ a: number }>("SELECT a FROM t")?.a).toBe(1);
  });

  test("iterate() can be left half-way and begun anew", () => {
    using opened = open();
    const sql = "SELECT value AS a FROM json_each('[1,2,3]')";
    for (let time = 0; time < 2; time += 1) {
      for (const { a } of opened.database.iterate<{ a: number }>(sql)) {
        if (a === 2) break;
      }
    }
    expect([...opened.database.iterate<{ a: number }>(sql)].map(({ a }) => a)).toEqual([1, 2, 3]);
  });

  test("a file that is no database, or is damaged, is named in the error", async () => {
    using directory = temporaryDirectory();
    const file = join(directory.path, "flurry.db");
    writeFileSync(file, "nonsense ".repeat(2000));
    const error = await rejection(openStore({ dir: directory.path }));
    expect([error.code, error.message.includes(file)]).toEqual(["STORE_FAILED", true]);
  });

  test("a directory that cannot be made is named in the error", async () => {
    const error = await rejection(openStore({ dir: "/proc/nowhere/data" }));
    expect([error.code, error.message.includes("/proc/nowhere/data")]).toEqual(["STORE_FAILED", true]);
  });
});

test("removeRows() deletes at most 500 rows of outputs at a time, and 32 MiB of values", () => {
  using opened = open();
  const { database } = opened;
  migrate(database);
  const { first } = taskIds(1);
  const values = [...Array(40).fill("x".repeat(1024 * 1024)), ...Array(600).fill(null)];
  database.transaction(() => {
    for (const [at, value] of values.entries()) {
      database.run(
        "INSERT INTO outputs (id, stdout, value) VALUES (?, ?, ?)",
        first + at,
        Buffer.of(),
        value,
      );
    }
  });
  const left = [];
  while (!removeRows(database, 1))
    left.push(database.get<{ n: number }>("SELECT count(*) AS n FROM outputs")!.n);
  expect(left).toEqual([608, 108, 0]);
});

describe("migrate()", () => {
  test("refuses a database of a newer version and leaves it as it is", async () => {
    using directory = temporaryDirectory();
    const { path: dir } = directory;
    await (await openStore({ dir }))[Symbol.asyncDispose]();
    {
      using database = new Database(join(dir, "flurry.db"));
      database.exec(`PRAGMA user_version = ${migrations.length + 1}`);
    }
    const error = await rejection(openStore({ dir }));
    expect(error.code).toBe("STORE_TOO_NEW");
    expect(error.message).toContain(`version ${migrations.length + 1}`);
    using database = new Database(join(dir, "flurry.db"));
    expect(database.get<{ user_version: number }>("PRAGMA user_version")?.user_version).toBe(
      migrations.length + 1,
    );
  });

  test("does each step once, and a step that fails not at all", () => {
    using opened = open();
    const { database } = opened;
    const steps = ["CREATE TABLE a (x INTEGER) STRICT; INSERT INTO a VALUES (1)", "UPDATE a SET x = x + 1"];
    migrate(database, steps.slice(0, 1));
    migrate(database, steps);
    migrate(database, steps);
    const broken = [...steps, "UPDATE a SET x = 7; SELECT nonsense FROM nowhere"];
    expect(() => migrate(database, broken)).toThrow("nowhere");
    expect(database.get<{ x: number }>("SELECT x FROM a")?.x).toBe(2);
    expect(database.get<{ user_version: number }>("PRAGMA user_version")?.user_version).toBe(2);
  });

  test("makes the same database from each older version on", async () => {
    const schemas = migrations.map((_, version) => {
      using opened = open();
      migrate(opened.database, migrations.slice(0, version + 1));
      migrate(opened.database);
      return opened.database
        .all<{ sql: string }>("SELECT sql FROM sqlite_schema ORDER BY name")
        .map(({ sql }) => sql);
    });
    for (const schema of schemas) expect(schema).toEqual(schemas[0]!);
  });

  test("leaves workers of before without an owner where there were keys, and without keys they are everybody's", () => {
    for (const keys of [0, 1]) {
      using opened = open();
      const { database } = opened;
      migrate(database, migrations.slice(0, 3));
      database.exec("INSERT INTO workers VALUES ('shop', 1, 1)");
      database.exec("INSERT INTO worker_versions VALUES (1, 'shop', 1, '{}', 0)");
      if (keys > 0) database.exec("INSERT INTO keys VALUES ('ann', 'ann', '[]', '{}', '', 0)");
      migrate(database);
      const row = database.get<{ owner: string | null }>("SELECT owner FROM worker_versions");
      expect(row?.owner).toBe(keys > 0 ? null : "");
    }
  });

  test("all tables are strict", async () => {
    using directory = temporaryDirectory();
    {
      await using store = await openStore({ dir: directory.path });
      await submit(store, 1);
    }
    for (const name of ["flurry.db", "logs.db"]) {
      using database = new Database(join(directory.path, name));
      const loose = database
        .all<{ name: string; strict: number }>("PRAGMA table_list")
        .filter(({ name, strict }) => strict === 0 && !name.startsWith("sqlite_"));
      expect(loose).toEqual([]);
    }
  });
});

function open(): Disposable & { database: Database } {
  using stack = new DisposableStack();
  const { path } = stack.use(temporaryDirectory());
  const database = stack.use(new Database(join(path, "a.db")));
  const owned = stack.move();
  return { database, [Symbol.dispose]: () => owned.dispose() };
}
