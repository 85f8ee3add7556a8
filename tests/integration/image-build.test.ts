import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { once } from "node:events";
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import { type BuildProgress, buildImage, type Image, type RecipeInput } from "../../guest-agent/image/mod.ts";

const isRoot = process.getuid?.() === 0;
const repository = resolve(import.meta.dirname, "../..");
/** A build with nothing cached fetches some 60 MB, and other tests may need the cores. */
const timeout = 600_000;

let directory: string;
let home: string;
let scratch: string;
const outerTmp = process.env.TMPDIR;

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "flurry-image-test-"));
  // Without root a subordinate user must get through, and the builder must find no stranger's leftovers.
  await chmod(directory, 0o755);
  home = join(directory, "home");
  scratch = join(directory, "scratch");
  await mkdir(scratch);
  process.env.TMPDIR = scratch;
});

afterAll(async () => {
  if (outerTmp === undefined) delete process.env.TMPDIR;
  else process.env.TMPDIR = outerTmp;
  await rm(directory, { recursive: true, force: true });
});

/** Every string here would do harm if it ever became part of a shell command. */
const hostile = `it's "q" $(touch ${"/flurry-was-here"}) \`id\``;
const recipeText = `{
  "name": "test",
  "keep": ["/usr/share/doc/dpkg/copyright"],
  "env": { "HOSTILE": ${JSON.stringify(hostile)} },
  "files": [
    { "to": "/opt/a/secret", "content": "from the recipe\\n", "mode": "0600" },
    { "to": "/opt/${"it's $(touch pwned)"}", "content": "odd name" },
    { "to": "/lib/flurry-test", "from": "data", "mode": "0755" },
  ],
  "commands": [
    "printf %s \\"$HOSTILE\\" > /opt/hostile",
    "cd /opt; echo $((6 * 7)) 'two words' > computed",
  ],
}`;

async function writeRecipe(text: string): Promise<string> {
  const path = join(directory, "recipe.jsonc");
  await writeFile(join(directory, "data"), "data beside the recipe\n");
  await writeFile(path, text);
  return path;
}

async function expectNothingLeft(): Promise<void> {
  expect(await readdir(scratch)).toEqual([]);
  const images = await readdir(join(home, "images")).catch(() => []);
  expect(images.filter((name) => name.startsWith("."))).toEqual([]);
  expect(await readFile("/proc/self/mountinfo", "utf8")).not.toContain(scratch);
  expect(await processesIn(scratch)).toEqual([]);
}

/** Command lines that name the directory. */
async function processesIn(path: string): Promise<string[]> {
  const found: string[] = [];
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const commandLine = await readFile(join("/proc", pid, "cmdline"), "latin1").catch(() => "");
    if (commandLine.includes(path)) found.push(commandLine.replaceAll("\0", " "));
  }
  return found;
}

function readFromDisk(image: Image, path: string): string {
  return execFileSync("rdsquashfs", ["--cat", path, image.disk], { encoding: "utf8" });
}

async function errorOf(
  recipe: RecipeInput | string,
  signal?: AbortSignal,
): Promise<{ code: string; message: string }> {
  const error = await buildImage(recipe, { home, ...(signal && { signal }) }).catch(
    (caught: unknown) => caught,
  );
  expect(error).toBeInstanceOf(Error);
  return error as { code: string; message: string } & Error;
}

describe("buildImage()", () => {
  let image: Image;

  test(
    "builds once when asked twice at the same time",
    async () => {
      const path = await writeRecipe(recipeText);
      const built: BuildProgress[] = [];
      const onProgress = (progress: BuildProgress) => built.push(progress);
      const images = await Promise.all([
        buildImage(path, { home, onProgress }),
        buildImage(path, { home, onProgress }),
      ]);
      image = images[0];
      expect(images[1]).toEqual(image);
      expect(
        built.filter(({ step, detail }) => step === "rootfs" && detail === "Packing the disk").length,
      ).toBe(1);
      await expectNothingLeft();
    },
    timeout,
  );

  test("puts the recipe's files and the effects of its commands on the disk, and nothing on the host", async () => {
    expect(readFromDisk(image, "opt/a/secret")).toBe("from the recipe\n");
    expect(readFromDisk(image, "opt/it's $(touch pwned)")).toBe("odd name");
    // /lib is a link to /usr/lib and has to stay one.
    expect(readFromDisk(image, "usr/lib/flurry-test")).toBe("data beside the recipe\n");
    expect(readFromDisk(image, "opt/hostile")).toBe(hostile);
    expect(readFromDisk(image, "opt/computed")).toBe("42 two words\n");
    expect(readFromDisk(image, "etc/hostname")).toBe("flurry\n");
    const listing = execFileSync("rdsquashfs", ["--describe", image.disk], { encoding: "utf8" });
    expect(listing).toMatch(/^file \S*opt\/a\/secret 0600 0 0/m);
    expect(listing).toMatch(/^slink \S*lib 0777 0 0 usr\/lib/m);
    expect(listing).toContain("usr/share/doc/dpkg/copyright");
    expect(listing).not.toContain("usr/share/doc/bash/copyright");
    expect(listing).not.toContain("flurry-was-here");
    expect(await stat("/flurry-was-here").catch(() => "absent")).toBe("absent");
  });

  test("writes a kernel, an initramfs and a manifest that an unprivileged QEMU can read", async () => {
    for (const path of [image.kernel, image.initrd, image.disk, join(image.dir, "manifest.json")]) {
      expect((await stat(path)).mode & 0o777).toBe(0o644);
    }
    expect((await stat(image.dir)).mode & 0o777).toBe(0o755);
    const { manifest } = image;
    expect(manifest.packages.dpkg).toMatch(/^\d/);
    expect(manifest.kernel.release).toContain("cloud");
    expect(manifest.kernel.format).toBe("elf");
    expect(manifest.env).toEqual({ HOSTILE: hostile });
    const initrd = await readFile(image.initrd, "latin1");
    for (const name of manifest.modules) expect(initrd).toContain(`/flurry/${name}.ko\n`);
  });

  test("answers from the cache without any step of a build", async () => {
    const steps = new Set<string>();
    const again = await buildImage(await writeRecipe(`// another comment\n${recipeText}`), {
      home,
      onProgress: ({ step }) => steps.add(step),
    });
    expect(again).toEqual(image);
    expect([...steps]).toEqual(["agent"]);
  });

  test(
    "gives the same bytes again, to another user too",
    async () => {
      const path = await writeRecipe(recipeText);
      const again =
        (await buildAsAnotherUser(path)) ?? (await buildImage(path, { home, rebuild: true })).hash;
      // The hash is that of the manifest, which holds the hashes of all files.
      expect(again).toBe(image.hash);
    },
    timeout,
  );

  test(
    "names the line of a package that does not exist, and a close name",
    async () => {
      const path = await writeRecipe(
        '{\n  "name": "test",\n  "packages": [\n    "bash",\n    "coreutilz"\n  ]\n}',
      );
      const error = await errorOf(path);
      expect(error.code).toBe("RECIPE_INVALID");
      expect(error.message).toStartWith(`${path}:5:5: Package "coreutilz" does not exist`);
      expect(error).toMatchObject({ hint: 'Did you mean "coreutils"?' });
      await expectNothingLeft();
    },
    timeout,
  );

  test("names the line of a file that is not there", async () => {
    const path = await writeRecipe(
      '{\n  "name": "test",\n  "files": [\n    { "to": "/a", "from": "absent" }\n  ]\n}',
    );
    const error = await errorOf(path);
    expect(error.code).toBe("RECIPE_INVALID");
    expect(error.message).toStartWith(`${path}:4:27: Cannot read "absent"`);
  });

  test(
    "names the line of a command that fails, shows its output and leaves nothing",
    async () => {
      const path = await writeRecipe(
        '{\n  "name": "test",\n  "commands": [\n    "true",\n    "echo some reason >&2; exit 7"\n  ]\n}',
      );
      const error = await errorOf(path);
      expect(error.code).toBe("IMAGE_BUILD_FAILED");
      expect(error.message).toStartWith(`${path}:5:5: Command 2 of the recipe failed\nsome reason`);
      await expectNothingLeft();
    },
    timeout,
  );

  test(
    "leaves nothing when aborted in mid-build",
    async () => {
      const abort = new AbortController();
      const onProgress = ({ step }: BuildProgress) => {
        if (step === "rootfs") abort.abort();
      };
      const error = await buildImage({ name: "aborted" }, { home, onProgress, signal: abort.signal }).catch(
        (caught: unknown) => caught,
      );
      expect(error).toMatchObject({ code: "ABORTED" });
      await expectNothingLeft();
    },
    timeout,
  );

  test(
    "leaves no process and no mount when killed in mid-build, and no file after the next start",
    async () => {
      const path = await writeRecipe('{ "name": "killed" }');
      // A shared mount tree, as systemd sets it up, would spread mmdebstrap's mounts to the host.
      const shared = ["unshare", "--mount", "sh", "-c", 'mount --make-rshared / && exec "$@"', "sh"];
      const command = [
        process.execPath,
        join(repository, "runtime/cli/main.ts"),
        "image",
        "build",
        path,
        "--json",
      ];
      const [program = "", ...args] = isRoot && canMount() ? [...shared, ...command] : command;
      const builder = spawn(program, args, {
        env: { ...process.env, FLURRY_HOME: home },
        stdio: ["ignore", "pipe", "inherit"],
      });
      const died = once(builder, "close");
      const installing = Promise.withResolvers<void>();
      createInterface(builder.stdout).on("line", (line) => {
        if (line.includes("Installing the essential")) installing.resolve();
      });
      await Promise.race([installing.promise, died]);
      expect(await processesIn(scratch)).not.toEqual([]);
      expect(await readFile(`/proc/${builder.pid}/mountinfo`, "utf8")).not.toContain(scratch);
      builder.kill("SIGKILL");
      await died;
      while ((await processesIn(scratch)).length > 0) await setTimeout(20);
      expect((await readdir(scratch)).length).toBe(1);

      expect((await errorOf({ name: "next", packages: ["coreutilz"] })).code).toBe("RECIPE_INVALID");
      await expectNothingLeft();
    },
    timeout,
  );

  test.skipIf(!isRoot || !canMount())(
    "says so when the disk is full, and leaves nothing",
    async () => {
      const small = join(directory, "small");
      await mkdir(small);
      execFileSync("mount", ["-t", "tmpfs", "-o", "size=90m,mode=755", "tmpfs", small]);
      process.env.TMPDIR = small;
      try {
        expect((await errorOf({ name: "too-large" })).code).toBe("NO_SPACE");
        expect(await readdir(small)).toEqual([]);
      } finally {
        process.env.TMPDIR = scratch;
        execFileSync("umount", [small]);
      }
      await expectNothingLeft();
    },
    timeout,
  );
});

/**
 * Builds as a user made for it, with a home directory that nobody else can enter. Undefined where
 * that cannot be: without root, or if the user could not reach the checkout.
 */
async function buildAsAnotherUser(path: string): Promise<string | undefined> {
  if (!isRoot || !(await everybodyReaches(repository)) || !(await everybodyReaches(process.execPath)))
    return undefined;
  const name = `flurry-test-${process.pid}`;
  const userHome = join(directory, "user");
  execFileSync("useradd", ["--create-home", "--home-dir", userHome, name]);
  try {
    await chmod(userHome, 0o700);
    await chmod(scratch, 0o1777);
    const main = join(repository, "runtime/cli/main.ts");
    const environment = [
      `HOME=${userHome}`,
      `FLURRY_HOME=${userHome}/data`,
      `TMPDIR=${scratch}`,
      `PATH=${process.env.PATH}`,
    ];
    const as = ["--reuid", name, "--regid", name, "--init-groups", "env", "-i", ...environment];
    const result = spawnSync("setpriv", [...as, process.execPath, main, "image", "build", path, "--json"], {
      encoding: "utf8",
      cwd: "/",
    });
    expect(result.stderr).toBe("");
    const last: unknown = JSON.parse(result.stdout.trim().split("\n").at(-1) ?? "");
    expect(last).toMatchObject({ event: "image" });
    await expectNothingLeft();
    return (last as { hash: string }).hash;
  } finally {
    spawnSync("userdel", ["--remove", name]);
  }
}

async function everybodyReaches(path: string): Promise<boolean> {
  for (let at = path; at !== dirname(at); at = dirname(at))
    if (((await stat(at)).mode & 0o005) !== 0o005) return false;
  return true;
}

function canMount(): boolean {
  return spawnSync("unshare", ["--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).status === 0;
}
