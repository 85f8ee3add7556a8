import { afterAll, afterEach, beforeAll, describe, expect, spyOn, test } from "bun:test";
import { chmodSync, existsSync, readdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import { FlurryError } from "../../errors/errors.ts";
import { Parent } from "../../runtime/fork/parent.ts";
import { familyOf } from "../../runtime/jobs/family.ts";
import { processesOf } from "../../runtime/vm/owner.ts";
import { VmTaskRuntime } from "../../runtime/workers/vm-task-runtime.ts";
import { rejection } from "../support/agent-peer.ts";
import { SETUP_MS, TEST_MS, type TemporaryDirectory, temporaryDirectory, tracesOf } from "../support/vm.ts";
import { runningChildren } from "../support/workers-children.ts";
import { attempt, homeWithImages, never, script, stepsDuring } from "../support/workers-runtime.ts";

let home: TemporaryDirectory;
let runtime: VmTaskRuntime;

beforeAll(async () => {
  home = await homeWithImages();
  // One open parent at most, so that two families are in each other's way.
  runtime = await VmTaskRuntime.open({ home: home.path, slots: 1, parents: 1 });
}, SETUP_MS);

afterEach(() => {
  expect(runningChildren(runtime.host.owner.run)).toEqual([]);
});

afterAll(async () => {
  await runtime[Symbol.asyncDispose]();
  expect(existsSync(runtime.host.owner.run)).toBe(false);
  expect(processesOf(runtime.host.owner.run)).toEqual([]);
  home[Symbol.dispose]();
}, TEST_MS);

const one = script("cat /opt/who", { files: [{ path: "/opt/who", text: "one" }] });
const two = script("cat /opt/who", { files: [{ path: "/opt/who", text: "two" }] });

function prepare(spec = one, signal = never) {
  return runtime.prepare(familyOf(spec), spec, signal);
}

describe("VmTaskRuntime.prepare()", () => {
  test(
    "makes one parent for all who ask at the same time, and tells its steps",
    async () => {
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "cold" });
      const refused = await rejection(runtime.admit(familyOf(one), never));
      expect(refused.code).toBe("FORK_FAILED");
      const impatience = new AbortController();
      const leaving = rejection(prepare(one, impatience.signal));
      const all = Promise.all([prepare(), prepare()]);
      setTimeout(() => impatience.abort(), 100);
      const steps = await stepsDuring(runtime, familyOf(one), all);
      expect((await leaving).code).toBe("ABORTED");
      // Some are too short to be seen each time.
      const known = [
        "looking for the image",
        "waiting for other preparations",
        "trying whether guests boot under KVM",
        "booting",
        "putting files in",
        "warming up",
        "freezing",
        "keeping the frozen parent on disk",
      ];
      expect(known.filter((step) => steps.includes(step))).toEqual(steps);
      expect(steps).toContain("booting");
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "ready" });
      expect(readdirSync(join(home.path, "parents", "by-key"))).toHaveLength(1);
      expect(runtime.accel).toMatch(/^(kvm|tcg)$/);
      await prepare();
    },
    TEST_MS,
  );

  test(
    "makes two parents at a time, and ends with the last who asked, leaving nothing",
    async () => {
      const hanging = [0, 1, 2].map((number) => script("", { warmUp: ["/bin/sleep", `100${number}`] }));
      const states = () => hanging.map((spec) => runtime.readiness(familyOf(spec)));
      const before = tracesOf(runtime.host);
      const [first, last] = [new AbortController(), new AbortController()];
      const leaving = hanging.map((spec) => rejection(prepare(spec, first.signal)));
      const staying = hanging.map((spec) => rejection(prepare(spec, last.signal)));
      while (states().filter(({ step }) => step === "warming up").length < 2) await new Promise(setImmediate);
      expect(states().filter(({ step }) => step === "waiting for other preparations")).toHaveLength(1);
      first.abort();
      expect((await Promise.all(leaving)).map(({ code }) => code)).toEqual(["ABORTED", "ABORTED", "ABORTED"]);
      expect(states().map(({ state }) => state)).toEqual(["preparing", "preparing", "preparing"]);
      last.abort();
      expect((await Promise.all(staying)).map(({ code }) => code)).toEqual(["ABORTED", "ABORTED", "ABORTED"]);
      expect(states().map(({ state }) => state)).toEqual(["cold", "cold", "cold"]);
      expect(tracesOf(runtime.host)).toEqual(before);
    },
    TEST_MS,
  );

  test(
    "says what the warm-up said when that fails",
    async () => {
      const failing = script("", { warmUp: ["/bin/sh", "-c", "echo no license >&2; exit 9"] });
      const error = await rejection(prepare(failing));
      expect(error.code).toBe("TASK_FAILED");
      expect(error.message).toMatch(/status 9: no license/);
      expect(runtime.readiness(familyOf(failing))).toEqual({
        state: "failed",
        error: { code: "TASK_FAILED", message: error.message },
      });
    },
    TEST_MS,
  );

  test(
    "builds an image that is a recipe only, and gives that up with the last who asked",
    async () => {
      using empty = temporaryDirectory();
      await using fresh = await VmTaskRuntime.open({ home: empty.path, slots: 1 });
      const family = familyOf(one);
      const abort = new AbortController();
      const building = rejection(fresh.prepare(family, one, abort.signal));
      while (!fresh.readiness(family).step?.startsWith("building image base")) {
        await new Promise(setImmediate);
      }
      abort.abort();
      expect((await building).code).toBe("ABORTED");
      expect(fresh.readiness(family)).toEqual({ state: "cold" });
    },
    TEST_MS,
  );

  test(
    "says IMAGE_NOT_FOUND for an image that is neither there nor a recipe",
    async () => {
      const missing = script("", { image: "no-such-image" });
      const error = await rejection(prepare(missing));
      expect(error).toMatchObject({ code: "IMAGE_NOT_FOUND" });
      expect(error.message).toContain("base");
      expect(runtime.readiness(familyOf(missing))).toMatchObject({
        state: "failed",
        error: { code: "IMAGE_NOT_FOUND", hint: expect.any(String) },
      });
    },
    TEST_MS,
  );
});

describe("a parent that was given up", () => {
  test(
    "was the one longest not used, and is opened again for a task that comes late",
    async () => {
      await prepare(two);
      expect(runtime.readiness(familyOf(two))).toEqual({ state: "ready" });
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "cold" });
      expect((await attempt(runtime, two)).stdout).toBe("two");
      // As for a task that was admitted before its parent was given up.
      const { stdout } = await runLate();
      expect(stdout).toBe("one");
      expect(runtime.readiness(familyOf(two))).toEqual({ state: "cold" });
    },
    TEST_MS,
  );

  test(
    "is checked again when its files were touched",
    async () => {
      await prepare();
      const memory = readdirSync(join(home.path, "parents"), { recursive: true, encoding: "utf8" }).filter(
        (path) => path.endsWith("/memory"),
      );
      for (const path of memory) chmodSync(join(home.path, "parents", path), 0o440);
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "cold" });
      const steps = await stepsDuring(runtime, familyOf(one), prepare());
      expect(steps).not.toContain("booting");
      expect((await attempt(runtime, one)).stdout).toBe("one");
    },
    TEST_MS,
  );

  test(
    "is made anew when no child of it starts, again and again",
    async () => {
      await prepare();
      const failing = spyOn(Parent.prototype, "fork").mockRejectedValue(
        new FlurryError("FORK_FAILED", "it did not start"),
      );
      try {
        for (let time = 0; time < 3; time++) {
          expect(runtime.readiness(familyOf(one))).toEqual({ state: "ready" });
          expect((await rejection(attempt(runtime, one))).code).toBe("FORK_FAILED");
        }
      } finally {
        failing.mockRestore();
      }
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "cold" });
      expect(await stepsDuring(runtime, familyOf(one), prepare())).toContain("booting");
      expect((await attempt(runtime, one)).stdout).toBe("one");
    },
    TEST_MS,
  );

  test(
    "is made anew when its files are gone from the disk",
    async () => {
      await prepare();
      for (const name of readdirSync(join(home.path, "parents"))) {
        rmSync(join(home.path, "parents", name), { recursive: true });
      }
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "cold" });
      expect((await attempt(runtime, one)).stdout).toBe("one");
      expect(runtime.readiness(familyOf(one))).toEqual({ state: "ready" });
    },
    TEST_MS,
  );

  async function runLate() {
    const family = familyOf(one);
    using _place = await runtime.admit(family, never);
    let stdout = "";
    const io = {
      started: () => undefined,
      output: (_stream: string, chunk: Uint8Array) => {
        stdout += Buffer.from(chunk).toString();
      },
      artifact: async () => undefined,
    };
    await runtime.run({ family, spec: one, job: "j", owner: "", index: 0, name: "late", env: {} }, io, never);
    return { stdout };
  }
});

describe("disposing of a VmTaskRuntime", () => {
  test(
    "ends its preparations and attempts, and leaves nothing",
    async () => {
      const short = await VmTaskRuntime.open({ home: home.path, slots: 1 });
      await short.prepare(familyOf(one), one, never);
      const hanging = script("", { warmUp: ["/bin/sleep", "1001"] });
      const preparing = rejection(short.prepare(familyOf(hanging), hanging, never));
      const begun = Promise.withResolvers<void>();
      const sleeping = script("echo; sleep 1000", { files: one.files });
      const running = rejection(attempt(short, sleeping, { io: { output: () => begun.resolve() } }));
      await begun.promise;
      await short[Symbol.asyncDispose]();
      expect((await running).code).toBe("ABORTED");
      expect((await preparing).code).toBe("ABORTED");
      expect(processesOf(short.host.owner.run)).toEqual([]);
      expect((await rejection(attempt(short, one))).code).toBe("ABORTED");
    },
    TEST_MS,
  );
});
