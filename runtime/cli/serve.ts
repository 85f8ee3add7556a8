import { once } from "node:events";
import { join } from "node:path";
import type { LogLevel } from "@logtape/logtape";
import { Command, Option } from "commander";
import { startLogging } from "../gateway/logging.ts";
import { openGateway } from "../gateway/open.ts";
import { flurryHome } from "../home.ts";
import { VmTaskRuntime } from "../workers/vm-task-runtime.ts";
import { type Address, address, PEER_TEXT, peers, positiveInteger, positiveNumber } from "./options.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

interface ServeOptions {
  listen: Address;
  data?: string;
  drain: number;
  children?: number;
  peer: string[];
  memserver?: Address;
  webhookAllow?: string[];
  outboundAllow?: string[];
  logLevel: LogLevel;
  json?: boolean;
}

const EXAMPLES = `
Examples:
  flurry serve
  flurry serve --listen 0.0.0.0:8787 --data /srv/flurry --drain 60
  flurry serve --webhook-allow hooks.internal:8080
  flurry serve --peer 10.0.0.1:7400              forks parents that the other host has frozen

Without any key, only this machine is listened to, and everybody on it may do everything. The first
SIGINT or SIGTERM lets running tasks end for --drain seconds and puts the rest back into the queue, the
second ends the gateway at once: no task is lost either way.`;

/** `flurry serve`: the gateway, until it is told to end. */
export function serveCommand(): Command {
  return new Command("serve")
    .summary("Run the gateway: take jobs over HTTP and run their tasks in forked VMs")
    .description("Runs the gateway: takes jobs over HTTP and runs their tasks in forked VMs")
    .addOption(
      new Option("--listen <host:port>", "address to listen on; port 0 for any that is free")
        .argParser(address("--listen"))
        .default({ hostname: "127.0.0.1", port: 8787 }, "127.0.0.1:8787"),
    )
    .option("--data <dir>", "directory of jobs, results and artifacts (default: gateway in Flurry's own)")
    .option("--drain <seconds>", "how long running tasks may go on at the end", positiveNumber("--drain"), 10)
    .option(
      "--children <n>",
      "most VMs at a time (default: what the host can take)",
      positiveInteger("--children"),
    )
    .option("--peer <host:port>", PEER_TEXT, peers, [])
    .addOption(
      new Option(
        "--memserver <host:port>",
        "also give frozen parents to other hosts, which must have the same keys",
      ).argParser(address("--memserver")),
    )
    .option("--webhook-allow <host...>", "hosts that webhooks may be sent to although they are not public")
    .option(
      "--outbound-allow <host...>",
      "hosts that workers with `allow` may ask although they are not public",
    )
    .addOption(
      new Option("--log-level <level>", "what is logged to stderr, as JSON lines")
        .choices(["debug", "info", "warning", "error"])
        .default("info"),
    )
    .option("--json", "print JSON lines")
    .addHelpText("after", EXAMPLES)
    .action(serve);
}

async function serve(options: ServeOptions): Promise<void> {
  const output = new Output(options);
  const signal = cliSignal();
  await using _logging = await startLogging({ level: options.logLevel });
  let runtime: VmTaskRuntime | undefined;
  await using gateway = await openGateway({
    dir: options.data ?? join(flurryHome(), "gateway"),
    listen: options.listen,
    runtime: async () => {
      const { children: slots, peer: peers, outboundAllow } = options;
      runtime = await VmTaskRuntime.open({ slots, peers, outboundAllow });
      return runtime;
    },
    drainMs: options.drain * 1000,
    webhookAllow: options.webhookAllow ?? [],
  });
  const { url, port } = gateway;
  if (options.memserver) {
    const { hostname, port: wanted } = options.memserver;
    const pagesPort = await runtime?.servePages(hostname, wanted);
    output.print(`Its memserver gives frozen parents to other hosts at ${hostname}:${pagesPort}`);
    output.emit({ event: "memserver", hostname, port: pagesPort });
  }
  output.print(`Flurry's gateway answers at ${url}; ${url}/docs shows how to ask`);
  output.emit({ event: "ready", url, port, docs: `${url}/docs` });
  if (!signal.aborted) await once(signal, "abort");
  output.note("Ending: no more jobs are taken, running tasks may end");
  output.emit({ event: "ending" });
}
