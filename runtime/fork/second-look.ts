import type { AgentClient, GuestIdentity, IdentityReceipt } from "../../guest-agent/protocol/mod.ts";
import { UnprovenError } from "./identity.ts";

/** Most bytes that a file with an id or a public key is read of. */
const LINE_BYTES = 512;

/**
 * Looks at a child's identity once more, in other ways than its receipt was made: by what its agent says of the
 * machine, and by its files as anybody would get them. An agent that only says that it has done something is
 * found out here. It costs as much as the identity itself.
 *
 * @throws UnprovenError naming what is not as it was read back; AgentError
 */
export async function lookAgain(
  agent: AgentClient,
  { vmId, index, hostname, machineId, bootId }: GuestIdentity,
  { sshKey }: Pick<IdentityReceipt, "sshKey">,
  options: { timeoutMs: number; signal?: AbortSignal | undefined },
): Promise<void> {
  const [hello, ...lines] = await Promise.all([
    agent.hello(options),
    lineOf(agent, "/etc/machine-id", options),
    lineOf(agent, "/proc/sys/kernel/random/boot_id", options),
    lineOf(agent, "/run/flurry/vm", options),
    sshKey === undefined ? undefined : lineOf(agent, "/etc/ssh/ssh_host_ed25519_key.pub", options),
  ]);
  const [machine, boot, vm = "", key] = lines;
  const [id, place] = vm.split(" ");
  const seen = {
    hostname: hello.hostname,
    machineId: machine,
    bootId: boot,
    vmId: id,
    index: place,
    sshKey: key,
  };
  const claimed = { hostname, machineId, bootId, vmId, index: String(index), sshKey };
  for (const field of ["hostname", "machineId", "bootId", "vmId", "index", "sshKey"] as const) {
    if (seen[field] === claimed[field]) continue;
    const reason = `its ${field} is ${JSON.stringify(seen[field])}, and it says ${JSON.stringify(claimed[field])}`;
    throw new UnprovenError(vmId, field, reason);
  }
}

async function lineOf(
  agent: AgentClient,
  path: string,
  options: { timeoutMs: number; signal?: AbortSignal | undefined },
): Promise<string> {
  const chunks: Uint8Array[] = [];
  for await (const chunk of agent.getFile(path, options)) {
    chunks.push(chunk);
    if (Buffer.concat(chunks).length > LINE_BYTES) break;
  }
  return Buffer.concat(chunks).toString("latin1").trimEnd();
}
