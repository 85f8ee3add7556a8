import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { chmodSync, existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { codeOf } from "../../errors/errors.ts";
import type { Image } from "../../guest-agent/image/mod.ts";
import { kernelOf } from "../../runtime/fork/open-parent.ts";
import { isRoot } from "../../runtime/home.ts";
import { chooseAccelerator, readVerdict } from "../../runtime/vm/accelerator.ts";
import { Host } from "../../runtime/vm/host.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  baseImage,
  environment,
  NO_TRACES,
  SETUP_MS,
  TEST_MS,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

/** Device numbers of /dev/kvm: misc, 232 (Linux, admin-guide/devices). */
const KVM_NODE = ["c", "10", "232"];
/** Those of /dev/null: a device that opens and is no KVM. */
const NULL_NODE = ["c", "1", "3"];

let image: Image;

beforeAll(async () => {
  image = await baseImage();
}, SETUP_MS);

/** Probes with a data directory of its own. Returns what came of it and how often a VM was booted for it. */
async function probe(home: string, deadlineMs?: number) {
  await using host = await Host.open({ home });
  let probes = 0;
  const onProbe = () => {
    probes += 1;
  };
  const verdict = await chooseAccelerator({
    host,
    boot: image,
    kernel: kernelOf(image),
    disk: image.disk,
    onProbe,
    deadlineMs,
  });
  expect(tracesOf(host)).toEqual(NO_TRACES);
  return { verdict, probes, qemu: host.qemu };
}

function makeNode(dir: string, numbers: readonly string[]): string {
  const path = join(dir, "kvm");
  expect(spawnSync("mknod", [path, ...numbers]).status).toBe(0);
  chmodSync(path, 0o666);
  return path;
}

describe("chooseAccelerator()", () => {
  const unforced = environment({ FLURRY_ACCEL: undefined });
  afterAll(() => unforced[Symbol.dispose]());

  test("takes TCG and says why when there is no KVM device", async () => {
    using home = temporaryDirectory();
    using _ = environment({ FLURRY_KVM: join(home.path, "none") });
    const { verdict, probes } = await probe(home.path);
    expect(verdict).toMatchObject({ accel: "tcg", reason: `there is no ${home.path}/none` });
    expect(probes).toBe(0);
  });

  test.if(isRoot())(
    "takes TCG when the device opens and no guest boots with it, and remembers that",
    async () => {
      using home = temporaryDirectory();
      using _ = environment({ FLURRY_KVM: makeNode(home.path, NULL_NODE) });
      const first = await probe(home.path);
      expect(first.verdict.accel).toBe("tcg");
      expect(first.verdict.reason).toContain("opens, but no guest boots under it");
      expect(first.probes).toBe(1);
      const second = await probe(home.path);
      expect(second).toMatchObject({ verdict: first.verdict, probes: 0 });
      expect(await readVerdict(home.path)).toEqual(first.verdict);
    },
    TEST_MS,
  );

  test.if(isRoot())(
    "probes again when what it remembers is damaged",
    async () => {
      using home = temporaryDirectory();
      using _ = environment({ FLURRY_KVM: makeNode(home.path, NULL_NODE) });
      writeFileSync(join(home.path, "accelerator.json"), '{"accel":"kvm"');
      expect(await readVerdict(home.path)).toBeUndefined();
      const { verdict, probes } = await probe(home.path);
      expect(verdict.accel).toBe("tcg");
      expect(probes).toBe(1);
    },
    TEST_MS,
  );

  test.if(isRoot() && existsSync("/dev/kvm"))(
    "takes the machine's KVM only if a guest really boots, within the deadline",
    async () => {
      using home = temporaryDirectory();
      using _ = environment({ FLURRY_KVM: makeNode(home.path, KVM_NODE) });
      const { verdict, probes } = await probe(home.path, 8000);
      expect(probes).toBe(1);
      const expected = {
        kvm: /^a guest booted under KVM in \d+ ms$/,
        tcg: /opens, but no guest boots under it: ./,
      };
      expect(verdict.reason).toMatch(expected[verdict.accel]);
    },
    TEST_MS,
  );

  test.if(isRoot())("takes TCG when the device is not open to the user of VMs", async () => {
    using home = temporaryDirectory();
    const node = makeNode(home.path, NULL_NODE);
    chmodSync(node, 0o600);
    using _ = environment({ FLURRY_KVM: node });
    const { verdict, probes } = await probe(home.path);
    expect(verdict.reason).toContain(`${node} does not open for`);
    expect(probes).toBe(0);
  });

  test("does what FLURRY_ACCEL says, and refuses what it cannot say", async () => {
    using home = temporaryDirectory();
    using _tcg = environment({ FLURRY_ACCEL: "tcg" });
    expect((await probe(home.path)).verdict).toMatchObject({ accel: "tcg", reason: "FLURRY_ACCEL says so" });
    using _bad = environment({ FLURRY_ACCEL: "fast" });
    expect(codeOf(await rejection(probe(home.path)))).toBe("BAD_ARGUMENT");
    expect(await readVerdict(home.path)).toBeUndefined();
  });
});
