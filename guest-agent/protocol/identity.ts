import { limits } from "./constants.ts";
import { bigInteger, broken, bytes, type Fields, flag, integer, text } from "./fields.ts";

/** Everything in which a child differs from its parent and its siblings, as the host wants it. */
export interface GuestIdentity {
  /** 1 to 64 bytes. */
  hostname: string;
  /** 0-based place in its family. */
  index: number;
  /** Name of the VM on the host; up to 128 bytes. */
  vmId: string;
  /** For /etc/machine-id: 32 lower-case hexadecimal digits (machine-id(5)). */
  machineId: string;
  /** For /proc/sys/kernel/random/boot_id: a UUID in lower case. */
  bootId: string;
  /** CLOCK_REALTIME, in nanoseconds since 1970. */
  realtimeNs: bigint;
  /** 32 to 128 random bytes for the kernel's generator. */
  entropy: Uint8Array;
  /** How long all hooks together may take, in milliseconds. @default 5000 */
  hookTimeoutMs?: number | undefined;
  /** Host key for an image with an SSH server: OpenSSH's files of an Ed25519 key. */
  sshKey?: { private: string; public: string } | undefined;
}

/** What a process with a fork hook said when it was told that it is in a new child. */
export interface HookReceipt {
  name: string;
  pid: number;
  ok: boolean;
  /** Its evidence if `ok`, else why not; at most 256 bytes. */
  text: string;
}

/** The identity that the guest has: everything is read back from its kernel and its files. */
export interface IdentityReceipt {
  /** As uname(2) says. */
  hostname: string;
  index: number;
  vmId: string;
  machineId: string;
  bootId: string;
  /** CLOCK_REALTIME before it was stepped, and after; nanoseconds since 1970. */
  beforeNs: bigint;
  realtimeNs: bigint;
  /** Bytes credited to the kernel's generator, and whether it was reseeded from them. */
  entropyBytes: number;
  reseeded: boolean;
  /** 32 bytes of getrandom(2), drawn after the reseed. */
  draw: Uint8Array;
  /** Whether the kernel's log says that vmgenid reseeded it since the freeze. It says so late, if at all. */
  vmGenId: boolean;
  /** The public SSH host key if the image had any; empty if it has none now. */
  sshKey: string | undefined;
  hooks: HookReceipt[];
  /** CLOCK_MONOTONIC from the first step to the answer: with the hooks, and without. */
  tookNs: number;
  kernelNs: number;
}

/** Checks the fields of IDENTIFIED. @throws AgentError AGENT_PROTOCOL naming the field */
export function parseReceipt(fields: Fields): IdentityReceipt {
  return {
    hostname: text(fields.hostname, "hostname", 64),
    index: integer(fields.index, "index", 0xffffffff),
    vmId: text(fields.vmId, "vmId", limits.VM_ID_MAX),
    machineId: text(fields.machineId, "machineId", 64),
    bootId: text(fields.bootId, "bootId", 64),
    beforeNs: bigInteger(fields.beforeNs, "beforeNs"),
    realtimeNs: bigInteger(fields.realtimeNs, "realtimeNs"),
    entropyBytes: integer(fields.entropyBytes, "entropyBytes", limits.ENTROPY_MAX),
    reseeded: flag(fields.reseeded, "reseeded"),
    draw: bytes(fields.draw, "draw", 32),
    vmGenId: flag(fields.vmGenId, "vmGenId"),
    sshKey: fields.sshKey === undefined ? undefined : text(fields.sshKey, "sshKey", limits.SSH_KEY_MAX),
    hooks: parseHooks(fields.hooks),
    tookNs: integer(fields.tookNs, "tookNs"),
    kernelNs: integer(fields.kernelNs, "kernelNs"),
  };
}

function parseHooks(value: unknown): HookReceipt[] {
  if (!Array.isArray(value) || value.length > limits.HOOKS_MAX) throw broken('a bad "hooks"');
  return value.map((hook: unknown) => {
    if (!Array.isArray(hook) || hook.length !== 4) throw broken('a bad "hooks"');
    const [name, pid, ok, said] = hook;
    return {
      name: text(name, "hooks", 32),
      pid: integer(pid, "hooks", 0x7fffffff),
      ok: flag(ok, "hooks"),
      text: text(said, "hooks", 256),
    };
  });
}

/** The fields of IDENTIFY. */
export function identityFields(identity: GuestIdentity): Fields {
  const { hookTimeoutMs, sshKey, ...fields } = identity;
  return {
    ...fields,
    ...(hookTimeoutMs === undefined ? {} : { hookTimeoutMs }),
    ...(sshKey === undefined ? {} : { sshKey }),
  };
}
