import { parseArgs } from "node:util";
import { FlurryError } from "../../errors/errors.ts";
import { startLogging } from "../../runtime/gateway/logging.ts";
import { openGateway } from "../../runtime/gateway/open.ts";
import { pause, scriptedWork } from "./gateway-work.ts";
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
 * - `["work"]`: does what its input says, see gateway-work.ts
 * - `["die"]`: its child dies
 *
 * It prints one line of JSON, `{"url": …}`, when it answers, and ends at SIGTERM.
 *
 *     bun tests/support/gateway-process.ts --data DIR [--listen HOST] [--port N] [--slots N] [--drain MS] [--lease MS] [--webhook-allow HOST] [--log]
 */
const { values } = parseArgs({
  options: {
    data: { type: "string" },
    listen: { type: "string", default: "127.0.0.1" },
    port: { type: "string", default: "0" },
    slots: { type: "string", default: "4" },
    drain: { type: "string", default: "0" },
    lease: { type: "string", default: "30000" },
    "webhook-allow": { type: "string", multiple: true, default: [] },
    log: { type: "boolean", default: false },
  },
});

const script: Script = async (task) => {
  const { spec, stdin, signal, print } = task;
  const [program, argument = ""] = spec.command!;
  switch (program) {
    case "false":
      return { exitCode: 1 };
    case "sleep":
      await pause(Number(argument), signal);
      return { exitCode: 0 };
    case "echo":
      await print(`${argument}\n`);
      return { exitCode: 0 };
    case "cat":
      await print(stdin ?? "");
      return { exitCode: 0 };
    case "work":
      return scriptedWork(task);
    case "die":
      throw new FlurryError("CHILD_DIED", "QEMU was killed, says the test");
    default:
      return { exitCode: 0 };
  }
};

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
    webhookAllow: values["webhook-allow"],
  });
  console.log(JSON.stringify({ url: gateway.url, port: gateway.port, pid: process.pid }));
  await ending.promise;
}
process.exit(0);
