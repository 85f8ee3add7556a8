/**
 * A runtime with a memserver, to be killed. Arguments: hash and directory of an image, directory for keys.
 * Prints the memserver's process id.
 */
import { Memserver } from "../../runtime/fork/memserver.ts";
import { Host } from "../../runtime/vm/host.ts";

const [hash, dir, keys] = process.argv.slice(2) as [string, string, string];
const host = await Host.open();
const memserver = new Memserver({ host, keys });
await memserver.open(hash, dir);
process.stdout.write(`${await memserver.pid()}\n`);
