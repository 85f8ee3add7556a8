/**
 * The memserver as a process of its own, which a runtime starts: `main.ts --run DIR --keys DIR`. It does
 * what its standard input says (process/control.ts), and ends with it. `--run` is read by nobody: it is
 * there for the process to be found by if its runtime is killed.
 */
import { parseArgs } from "node:util";
import { FlurryError } from "../errors/errors.ts";
import { ControlServer } from "./process/control-server.ts";
import { OpenImages } from "./process/open-images.ts";
import { Peers } from "./process/peers.ts";

const { values } = parseArgs({ options: { run: { type: "string" }, keys: { type: "string" } } });
if (!values.keys) throw new FlurryError("BAD_ARGUMENT", "--keys names no directory");

function onTrouble(trouble: unknown): void {
  process.stderr.write(`${trouble instanceof Error ? trouble.message : String(trouble)}\n`);
}

await using peers = new Peers({ keys: values.keys, emit: (event) => server.emit(event), onTrouble });
await using images = new OpenImages((hash, dir, holders) => peers.open(hash, dir, holders));
const server = new ControlServer({ input: process.stdin, output: process.stdout, images, peers, onTrouble });
await using _children = server.children;
const error = await server.closed;
if (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 5;
}
process.stdin.destroy();
