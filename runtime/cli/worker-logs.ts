import { type GatewayOptions, gatewayClient } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

/** How long the gateway is asked to wait for the next record. */
const WAIT_MS = 20_000;

/** `flurry worker logs`: what a JS worker has printed while it answered requests. */
export async function showLogs(name: string, options: GatewayOptions & { follow?: boolean }): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const { workers } = gatewayClient(options);
  const signal = cliSignal();
  let after = 0;
  do {
    const waitMs = options.follow ? WAIT_MS : 0;
    const records = await workers.logs(name, { after, waitMs, signal });
    for (const record of records) {
      after = record.id;
      output.emit({ event: "log", ...record });
      output.print(`${record.at} [${record.vm || "gateway"}] ${record.text}`);
    }
  } while (options.follow && !signal.aborted);
}
