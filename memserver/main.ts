/**
 * The memserver as a process of its own, which a runtime starts: `main.ts --run DIR --keys DIR`. It does
 * what its standard input says (process/control.ts), and ends with it. `--run` is read by nobody: it is
 * there for the process to be found by if its runtime is killed.
 */
import { parseArgs } from "node:util";
import { FlurryError } from "../errors/errors.ts";
import { ControlServer } from "./process/control-server.ts";
import { OpenImages } from "./process/open-images.ts";

parseArgs({ options: { run: { type: "string" }, keys: { type: "string" } } });

const refuse = () => Promise.reject(new FlurryError("BAD_ARGUMENT", "This memserver knows no others"));
await using images = new OpenImages(refuse);
const server = new ControlServer({
  input: process.stdin,
  output: process.stdout,
  images,
  peers: { find: refuse, listen: refuse },
});
await using _children = server.children;
const error = await server.closed;
if (error) {
  process.stderr.write(`${error.message}\n`);
  process.exitCode = 5;
}
process.stdin.destroy();
