import { z } from "zod";
import { Time } from "./common.ts";

/** Name of a VM, as FLURRY_VM_ID in it. */
export const VmId = z
  .string()
  .regex(/^[a-z0-9-]{1,64}$/, "must be 1 to 64 of a-z, 0-9 and -")
  .meta({ example: "vm-0123456789ab" });

const Sha256 = z.string().regex(/^[0-9a-f]{64}$/);
/** Nanoseconds since 1970: more than a JSON number holds. */
const Nanoseconds = z.string().regex(/^\d{1,20}$/);

/** What a child was sent, and what it has read back in its kernel and files before any user code ran in it. */
export const Receipt = z
  .object({
    format: z.literal("flurry-receipt"),
    version: z.literal(1),
    vm: VmId,
    at: Time.meta({ description: "When its identity was sent" }),
    parent: z.object({
      image: z.string(),
      memory: Sha256.nullable().meta({ description: "Hash of its memory image" }),
      frozenAt: Time,
    }),
    sent: z.object({
      hostname: z.string(),
      index: z.int(),
      machineId: z.string(),
      bootId: z.string(),
      realtimeNs: Nanoseconds,
      entropyBytes: z.int(),
      entropySha256: Sha256,
      hooks: z.int().meta({ description: "Processes that had a fork hook when the parent was frozen" }),
    }),
    read: z.object({
      vm: z.string(),
      hostname: z.string(),
      index: z.int(),
      machineId: z.string(),
      bootId: z.string(),
      realtimeNs: Nanoseconds,
      entropyBytes: z.int(),
      reseeded: z.boolean(),
      drawSha256: Sha256.meta({ description: "Of 32 random bytes, drawn after the reseed" }),
      vmGenId: z.boolean().meta({ description: "Whether the guest's kernel had noticed the fork by then" }),
      sshKey: z.string().optional().meta({ description: "Public host key, of images with an SSH server" }),
      hooks: z.array(z.object({ name: z.string(), pid: z.int(), evidence: z.string() })),
    }),
    driftMs: z.number().meta({ description: "How far its clock was behind, since the freeze" }),
    elapsedMs: z.number().meta({ description: "From the sending to the proof, on the host" }),
    kernelMs: z.number().meta({ description: "Of it in the guest: what its agent did" }),
    hooksMs: z.number().meta({ description: "And what its hooks took" }),
  })
  .meta({ id: "Receipt" });
export type Receipt = z.infer<typeof Receipt>;

export const SignedReceipt = z
  .object({
    receipt: Receipt,
    payload: z.string().meta({ description: "The receipt as the JSON text that is signed" }),
    signature: z.string().meta({ description: "Ed25519 (RFC 8032) over its UTF-8, in base64" }),
    publicKey: z.string().meta({ description: "Of this installation, as PEM (RFC 8410)" }),
  })
  .meta({ id: "SignedReceipt" });
export type SignedReceipt = z.infer<typeof SignedReceipt>;
