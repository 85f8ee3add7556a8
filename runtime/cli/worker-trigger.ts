import { FlurryError } from "../../errors/errors.ts";
import { formatMs } from "./format.ts";
import { type GatewayOptions, gatewayClient } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

/**
 * `flurry worker trigger`: calls a worker's `scheduled()` now, and waits for its end.
 *
 * @throws FlurryError TASK_FAILED when it fails
 */
export async function trigger(name: string, options: GatewayOptions & { cron?: string }): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  const { workers } = gatewayClient(options);
  const run = await workers.trigger(name, { cron: options.cron, signal: cliSignal() });
  output.emit({ event: "scheduled", ...run });
  const { version, vm, ms, error } = run;
  if (error) {
    throw new FlurryError("TASK_FAILED", `scheduled() of ${name}@${version} failed: ${error.message}`, {
      hint: `flurry worker logs ${name} shows what it has printed`,
    });
  }
  output.print(`scheduled() of ${name}@${version} ran in ${vm} for ${formatMs(ms)}`);
}
