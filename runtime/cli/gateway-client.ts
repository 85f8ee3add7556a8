import type { Command } from "commander";
import { FlurryClient } from "../client/mod.ts";
import { cliSignal } from "./signal.ts";

/** What every command that asks a gateway has. */
export interface GatewayOptions {
  url?: string;
  json?: boolean;
}

const DEFAULT_URL = "http://127.0.0.1:8787";

/** Adds the options of a command that asks a gateway. */
export function gatewayOptions(command: Command): Command {
  return command
    .option("--url <url>", `where the gateway listens (default: $FLURRY_URL, else ${DEFAULT_URL})`)
    .option("--json", "print JSON lines");
}

/** The gateway that the options name. Its key comes by $FLURRY_KEY: others can read a command line. */
export function gatewayClient({ url }: GatewayOptions): FlurryClient {
  return new FlurryClient({
    url: url ?? (process.env.FLURRY_URL || DEFAULT_URL),
    key: process.env.FLURRY_KEY || undefined,
    // A person waits: whether a gateway is there is to be said soon.
    retries: 2,
    signal: cliSignal(),
  });
}
