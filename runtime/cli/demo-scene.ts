import { readFile } from "node:fs/promises";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { Parent } from "../fork/parent.ts";
import type { Size, Tile } from "./demo-tiles.ts";

const EXAMPLES_DIR = "/usr/share/doc/povray/examples";
const GUEST_SCENE = "/tmp/scene.pov";

export const DEFAULT_SCENE = "advanced/woodbox.pov";

/** A scene: its path in the guest, and its content if it has to be brought there. */
export interface Scene {
  path: string;
  data?: Uint8Array;
}

/**
 * A file of the user's goes into the guest; a name that is no file is one of Debian's examples.
 *
 * @throws FlurryError BAD_ARGUMENT
 */
export async function findScene(scene: string): Promise<Scene> {
  try {
    return { path: GUEST_SCENE, data: await readFile(scene) };
  } catch (cause) {
    if (codeOf(cause) !== "ENOENT") {
      const reason = cause instanceof Error ? cause.message : String(cause);
      throw new FlurryError("BAD_ARGUMENT", `Cannot read scene "${scene}": ${reason}`, { cause });
    }
    if (scene.startsWith("/") || scene.split("/").includes("..")) throw missing(scene);
    return exampleScene(scene);
  }
}

export function exampleScene(name: string): Scene {
  return { path: `${EXAMPLES_DIR}/${name}` };
}

/** @throws FlurryError BAD_ARGUMENT if there is no such example in the guest */
export async function requireScene(name: string, scene: Scene, parent: Parent, signal: AbortSignal) {
  if (scene.data || name === DEFAULT_SCENE) return;
  await using child = await parent.fork({ identity: { index: 0, hostname: "scenes" }, signal });
  const { code } = await child.agent.run(["test", "-f", scene.path], { signal });
  if (code !== 0) throw missing(name);
}

/** Files that a VM needs to render a scene. */
export function filesOf(scene: Scene): { path: string; data: Uint8Array }[] {
  return scene.data ? [{ path: scene.path, data: scene.data }] : [];
}

/** POV-Ray's arguments for one tile of a picture, or for all of it. Its PNG always has the full size. */
export function povray(scene: Scene, size: Size, tile: Tile | undefined, out: string): string[] {
  const region = tile
    ? [`+SC${tile.x + 1}`, `+EC${tile.x + tile.width}`, `+SR${tile.y + 1}`, `+ER${tile.y + tile.height}`]
    : [];
  const folder = scene.path.slice(0, scene.path.lastIndexOf("/"));
  const picture = [`+O${out}`, `+W${size.width}`, `+H${size.height}`, ...region, "+FN8", "+Q9"];
  // One thread, no window, and on the console only what goes wrong.
  return ["povray", `+I${scene.path}`, `+L${folder}`, ...picture, "+WT1", "-D", "-GD", "-GR", "-GS"];
}

/** What POV-Ray has to say about a failure, without its title and its list of authors. */
export function povrayError(stderr: string): string {
  const [text = ""] = stderr.split(/^==== .* ====+$/m).slice(-1);
  return text.replace(/^Render failed$/m, "").trim();
}

function missing(scene: string): FlurryError {
  return new FlurryError("BAD_ARGUMENT", `No scene "${scene}": neither a file nor one of povray-examples`, {
    hint: `try --scene ${DEFAULT_SCENE}`,
  });
}
