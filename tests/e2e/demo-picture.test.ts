import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { decode } from "fast-png";
import { exampleScene, povray } from "../../runtime/cli/demo-scene.ts";
import { CliSandbox, eventsOf } from "../support/cli.ts";

const SIZE = { width: 64, height: 48 };
const SCENE = "objects/superel2.pov";
/** Four small tiles of a scene that is rendered in a moment. */
const SMALL = ["--children", "4", "--size", "64x48", "--scene", SCENE];
/** One pixel each: enough for what does not come to a picture. */
const TINY = ["--children", "2", "--size", "2x1", "--no-compare"];

let sandbox: CliSandbox;

setDefaultTimeout(120_000);

beforeAll(async () => {
  sandbox = new CliSandbox();
  await sandbox.buildImage("povray");
}, 900_000);

afterAll(async () => {
  expect(sandbox.leftovers()).toEqual([]);
  await sandbox[Symbol.asyncDispose]();
});

/** Pixels of a PNG as RGB, three bytes each. */
function pixelsOf(png: Uint8Array): number[] {
  const { width, height, depth, channels, data } = decode(png);
  expect({ width, height, depth }).toEqual({ ...SIZE, depth: 8 });
  return [...data].filter((_value, index) => index % channels < 3);
}

describe("flurry demo", () => {
  test("renders in tiles the very picture that one VM renders as a whole", async () => {
    const demo = await sandbox.flurry(["demo", ...SMALL, "--no-compare", "--fresh"]);
    expect(demo.stderr).toMatch(/^Parent: booted in /m);
    expect(demo.status).toBe(0);
    // The place that is taken when --out does not say.
    expect(demo.stdout).toContain(`Picture: ${join(sandbox.directory, "flurry-demo.png")} (4 tiles`);
    expect(readdirSync(sandbox.directory)).toEqual(["flurry-demo.png"]);

    const whole = povray(exampleScene(SCENE), SIZE, undefined, "/out/whole.png");
    const out = join(sandbox.directory, "whole");
    const single = await sandbox.flurry(["run", "--image", "povray", "--out", out, "--", ...whole]);
    expect(single.status).toBe(0);
    const pixels = pixelsOf(readFileSync(join(sandbox.directory, "flurry-demo.png")));
    expect(new Set(pixels).size).toBeGreaterThan(16);
    expect(pixels).toEqual(pixelsOf(readFileSync(join(out, "0", "whole.png"))));
  });

  test("starts the next time from the parent on disk, without a boot", async () => {
    const out = join(sandbox.directory, "second.png");
    const result = await sandbox.flurry(["demo", ...SMALL, "--no-compare", "--out", out, "--json"]);
    expect(result.status).toBe(0);
    expect(result.stderr).toBe("");
    const done = eventsOf(result).at(-1);
    expect(done).toMatchObject({ event: "done", picture: out, origin: { cached: true } });
    expect(done?.origin).not.toHaveProperty("bootMs");
    expect(done?.forked).toMatchObject({
      totalMs: expect.any(Number),
      tasks: [0, 1, 2, 3].map((index) => ({ index, times: { answerMs: expect.any(Number) } })),
    });
    pixelsOf(readFileSync(out));
  });

  test("sets the figures beside those of cold-booted VMs, which give the same picture", async () => {
    const out = join(sandbox.directory, "compared.png");
    const args = ["demo", "--children", "2", "--size", "64x48", "--scene", SCENE, "--out", out];
    const { status, stdout } = await sandbox.flurry(args);
    expect(status).toBe(0);
    const ms = String.raw`[\d.]+ m?s`;
    const pair = `${ms} / ${ms}`;
    const rows = [
      "2 forked VMs +2 cold-booted VMs",
      String.raw`boot +none \(parent from disk\) +2 times`,
      String.raw`freeze pause +none \(parent from disk\) +-`,
      String.raw`descriptor +\d+ KiB +-`,
      `start to running, p50 / p99 +${pair} +${pair}`,
      `start to first answer, p50 / p99 +${pair} +${pair}`,
      `total +${ms} +${ms}`,
    ];
    const table = stdout.slice(stdout.indexOf("2 forked VMs"));
    expect(table).toMatch(new RegExp(`^${rows.join("\n")}\n`));
    expect(stdout).toMatch(/^A forked VM answers \d+ times sooner than one that boots/m);
    expect(stdout).toContain("Both ways give the same picture, pixel for pixel.");
  });
});

describe("flurry demo --scene", () => {
  test("takes a file of the user's", async () => {
    const scene = join(sandbox.directory, "mine.pov");
    writeFileSync(scene, "background { rgb <1, 0, 0> } camera { location <0, 0, -5> look_at <0, 0, 0> }");
    const out = join(sandbox.directory, "mine.png");
    const args = ["demo", "--children", "2", "--size", "64x48", "--no-compare", "--out", out];
    const { status } = await sandbox.flurry([...args, "--scene", scene]);
    expect(status).toBe(0);
    const pixels = pixelsOf(readFileSync(out));
    expect(pixels).toEqual(
      Array(SIZE.width * SIZE.height)
        .fill([255, 0, 0])
        .flat(),
    );
  });

  test.each(["no-such.pov", "/no/such.pov", "../../../etc/passwd.pov"])(
    "refuses %s, which is nowhere",
    async (scene) => {
      const { status, stdout, stderr } = await sandbox.flurry(["demo", ...TINY, "--scene", scene]);
      expect(status).toBe(2);
      expect(stdout).toBe("");
      expect(stderr).toContain(`flurry: No scene "${scene}": neither a file nor one of povray-examples\n`);
      expect(stderr).toEndWith("  code: BAD_ARGUMENT\n");
    },
  );

  test("shows what POV-Ray says of a scene that it cannot parse, and no more", async () => {
    const scene = join(sandbox.directory, "bad.pov");
    writeFileSync(scene, "// a comment\nsphere { <0, 0, 0> 1 pigmnt { red 1 } }\n");
    const { status, stderr } = await sandbox.flurry(["demo", ...TINY, "--scene", scene]);
    expect(status).toBe(4);
    expect(stderr).toContain("flurry: Tile 0 was not rendered: POV-Ray exited with status 1:\n");
    expect(stderr).toMatch(/line 2: Parse Error: .*'pigmnt'/s);
    expect(stderr).not.toContain("Copyright");
    expect(stderr).toEndWith("  code: TASK_FAILED\n");
  });
});

test.each(["no-such-directory/picture.png", "."])(
  "flurry demo --out %s is refused before anything is rendered",
  async (out) => {
    const { status, stdout, stderr } = await sandbox.flurry(["demo", ...SMALL, "--out", out]);
    expect(status).toBe(2);
    expect(stdout).toBe("");
    expect(stderr).toStartWith(`flurry: Cannot write "${out}": `);
    expect(stderr).toEndWith("  code: BAD_ARGUMENT\n");
    expect(existsSync(join(sandbox.directory, "no-such-directory"))).toBe(false);
  },
);
