import { parseArgs } from "node:util";
import { startLogging } from "../../runtime/gateway/logging.ts";
import { openGateway } from "../../runtime/gateway/open.ts";
import { type Script, ScriptedRuntime } from "./scripted-runtime.ts";

/**
 * A gateway in a process of its own, for tests that kill it and for the bench. Its tasks do what their
 * command says, without VMs:
 *
 * - `["true"]`: ends at once, as do all others that are not here
 * - `["false"]`: exits with 1
 * - `["sleep", MS]`: ends after so many milliseconds
 * - `["echo", TEXT]`: prints it
 * - `["cat"]`: prints its input
 *
 * It prints one line of JSON, `{"url": …}`, when it answers, and ends at SIGTERM.
 *
 *     bun tests/support/gateway-process.ts --data DIR [--listen HOST] [--port N] [--slots N] [--drain MS] [--lease MS] [--log]
 */
const { values } = parseArgs({
  options: {
    data: { type: "string" },
    listen: { type: "string", default: "127.0.0.1" },
    port: { type: "string", default: "0" },
    slots: { type: "string", default: "4" },
    drain: { type: "string", default: "0" },
    lease: { type: "string", default: "30000" },
    log: { type: "boolean", default: false },
  },
});

const script: Script = async ({ spec, stdin, signal, print }) => {
  const [program, argument = ""] = spec.command;
  switch (program) {
    case "false":
      return { exitCode: 1 };
    case "sleep":
      await sleep(Number(argument), signal);
      return { exitCode: 0 };
    case "echo":
      await print(`${argument}\n`);
      return { exitCode: 0 };
    case "cat":
      await print(stdin ?? "");
      return { exitCode: 0 };
    default:
      return { exitCode: 0 };
  }
};

async function sleep(ms: number, signal: AbortSignal): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => resolve(), { once: true });
  await promise;
  clearTimeout(timer);
}

await using _logging = values.log ? await startLogging() : undefined;
const ending = Promise.withResolvers<void>();
process.once("SIGTERM", () => ending.resolve());
{
  await using gateway = await openGateway({
    dir: values.data ?? "",
    listen: { hostname: values.listen, port: Number(values.port) },
    runtime: () => new ScriptedRuntime({ script, slots: Number(values.slots) }),
    drainMs: Number(values.drain),
    leaseMs: Number(values.lease),
  });
  console.log(JSON.stringify({ url: gateway.url, port: gateway.port, pid: process.pid }));
  await ending.promise;
}
process.exit(0);
