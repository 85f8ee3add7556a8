import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  findByKey,
  type Image,
  listImages,
  openStaging,
  publish,
  removeImage,
  resolveImage,
} from "../../guest-agent/image/store.ts";

let home: string;

beforeEach(async () => {
  home = await mkdtemp(join(tmpdir(), "flurry-store-test-"));
});

afterEach(async () => {
  await rm(home, { recursive: true, force: true });
});

async function put(name: string, content: string, key = `key-${name}`): Promise<Image> {
  await using staging = await openStaging(home);
  for (const file of ["vmlinuz", "initrd", "root.squashfs"])
    await writeFile(join(staging.path, file), `${file} ${content}`);
  return await publish(home, staging.path, {
    name,
    suite: "trixie",
    arch: "amd64",
    builder: 1,
    key,
    diskKey: `disk-${key}`,
    sourceDateEpoch: 1,
    agentSha256: "",
    kernel: { release: "1", format: "elf", packages: {} },
    modulesBytes: 0,
    modules: [],
    packages: {},
    env: {},
    recipe: {},
  });
}

describe("publish()", () => {
  test("gives the same content the same hash and leaves no staging directory", async () => {
    const first = await put("a", "1");
    const second = await put("a", "1");
    expect(second).toEqual(first);
    expect((await readdir(join(home, "images"))).sort()).toEqual(
      [first.hash, "by-disk", "by-key", "by-name"].sort(),
    );
  });

  test("makes files and directory readable by others", async () => {
    const image = await put("a", "1");
    expect((await stat(join(image.dir, "manifest.json"))).mode & 0o777).toBe(0o644);
  });

  test("keeps the older image of a name, which the name no longer means", async () => {
    const older = await put("a", "1");
    const newer = await put("a", "2");
    expect((await listImages(home)).map(({ hash, isCurrent }) => [hash, isCurrent])).toEqual([
      [newer.hash, true],
      [older.hash, false],
    ]);
    expect((await resolveImage(home, "a")).hash).toBe(newer.hash);
    expect((await resolveImage(home, older.hash.slice(0, 8))).hash).toBe(older.hash);
  });
});

describe("findByKey()", () => {
  test("finds by either key and forgets a damaged image", async () => {
    const image = await put("a", "1", "k");
    expect((await findByKey(home, "by-key", "k"))?.hash).toBe(image.hash);
    expect((await findByKey(home, "by-disk", "disk-k"))?.hash).toBe(image.hash);
    expect(await findByKey(home, "by-key", "other")).toBeUndefined();
    await writeFile(image.disk, "cut");
    expect(await findByKey(home, "by-key", "k")).toBeUndefined();
    expect(await listImages(home)).toEqual([]);
  });
});

describe("resolveImage()", () => {
  test("says how to build an image that is not there", async () => {
    const empty = await resolveImage(home, "povray").catch((error: unknown) => error);
    expect(empty).toMatchObject({
      code: "IMAGE_NOT_FOUND",
      message: 'No image "povray"; there are no images yet',
      hint: "Build it: flurry image build povray",
    });
    await put("a", "1");
    await put("b", "1");
    const other = await resolveImage(home, "povray").catch((error: unknown) => error);
    expect(other).toMatchObject({ message: 'No image "povray"; there are: a, b' });
  });
});

describe("removeImage()", () => {
  test("removes all images of a name with their index entries", async () => {
    await put("a", "1");
    await put("a", "2");
    const other = await put("b", "1");
    expect((await removeImage(home, "a")).length).toBe(2);
    expect((await listImages(home)).map(({ hash }) => hash)).toEqual([other.hash]);
    expect(await readdir(join(home, "images", "by-name"))).toEqual(["b"]);
    expect(await readdir(join(home, "images", "by-key"))).toEqual(["key-b"]);
  });

  test("rejects what is not there", async () => {
    expect(await removeImage(home, "a").catch((error: unknown) => error)).toMatchObject({
      code: "IMAGE_NOT_FOUND",
    });
  });
});
