import { once } from "node:events";
import { join } from "node:path";
import { Command, Option } from "commander";
import { OpenImages } from "../../memserver/process/open-images.ts";
import { Peers } from "../../memserver/process/peers.ts";
import { flurryHome, memserverKeys } from "../home.ts";
import { type Address, address } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

interface MemserverOptions {
  listen: Address;
  keys?: string;
  json?: boolean;
}

const EXAMPLES = `
Examples:
  flurry memserver --listen 10.0.0.1:7400
  flurry run --peer 10.0.0.1:7400 --image base -- uname -a      on another host

Other hosts get what has been frozen on this one, page by page, when they have the same keys: copy the
directory of the keys (it is made at the first start, and printed) to each host of the installation.
They also need the same image, of the same build, and the same QEMU.`;

/** `flurry memserver`: gives the frozen parents of this host to others, until it is told to end. */
export function memserverCommand(): Command {
  return new Command("memserver")
    .description("Gives the memory of this host's frozen parents to other hosts, page by page")
    .addOption(
      new Option("--listen <host:port>", "address to listen on; port 0 for any that is free")
        .argParser(address("--listen"))
        .makeOptionMandatory(),
    )
    .option("--keys <dir>", "directory of the installation's keys (default: memserver-keys in Flurry's own)")
    .option("--json", "print JSON lines")
    .addHelpText("after", EXAMPLES)
    .action(memserver);
}

async function memserver(options: MemserverOptions): Promise<void> {
  const output = new Output(options);
  const signal = cliSignal();
  const home = flurryHome();
  const keys = options.keys ?? memserverKeys(home);
  await using peers = new Peers({
    keys,
    emit: (event) => output.emit(event),
    onTrouble: (trouble) => output.note(trouble instanceof Error ? trouble.message : String(trouble)),
  });
  // Nothing is open here: each image is read where it lies.
  await using images = new OpenImages((hash, dir, holders) => peers.open(hash, dir, holders));
  const { hostname } = options.listen;
  const request = {
    op: "listen",
    host: hostname,
    port: options.listen.port,
    dir: join(home, "parents"),
  } as const;
  const port = await peers.listen(request, images);
  output.print(
    `The frozen parents of this host are served at ${hostname}:${port}, to holders of the keys in ${keys}`,
  );
  output.emit({ event: "ready", hostname, port, keys });
  if (!signal.aborted) await once(signal, "abort");
}
