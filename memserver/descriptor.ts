import { createHash } from "node:crypto";
import { Encoder } from "cbor-x";
import { z } from "zod";
import { FlurryError } from "../errors/errors.ts";

/** Larger than any device state that we know of; checked before decoding. */
export const MAX_DESCRIPTOR_BYTES = 4 * 1024 * 1024;

const hex64 = z.string().regex(/^[0-9a-f]{64}$/, "is no SHA-256 in hex");

const fingerprintSchema = z.strictObject({
  /** First line of `qemu --version`: device state has no stable meaning across builds. */
  qemu: z.string().min(1),
  /** Canonical machine type, e.g. `pc-q35-10.0`. */
  machine: z.string().min(1),
  cpu: z.string().min(1),
  accel: z.enum(["kvm", "tcg"]),
  cpus: z.int().positive(),
  memBytes: z.int().positive(),
  /** Hash of the devices on QEMU's command line. */
  devices: hex64,
  /** Hash of the root disk's image, which the guest's page cache describes. */
  image: z.string().min(1),
  /** The host's CPU model under KVM, where the guest sees it; empty under TCG. */
  hostCpu: z.string(),
});

const descriptorSchema = z.strictObject({
  format: z.literal("flurry-descriptor"),
  version: z.literal(3),
  /** Milliseconds since 1970 at the freeze. */
  frozenAt: z.number().nonnegative(),
  fingerprint: fingerprintSchema,
  /** QEMU's device sections with their EOF, see `deviceSections`. */
  deviceState: z.instanceof(Uint8Array).refine((bytes) => bytes.length > 0, "is empty"),
  /** Processes with a fork hook, all of which have to answer in a child. */
  hooks: z.int().nonnegative(),
  ram: z.strictObject({
    /** RAM block name in QEMU. */
    block: z.string().min(1),
    bytes: z.int().positive(),
    /** Of the memory image, see `PageTable.root`; absent until the image has been hashed. */
    hash: hex64.optional(),
  }),
  lineage: z.strictObject({
    /** 0 for a VM that was booted; n + 1 for the freeze of a child of generation n. */
    generation: z.int().nonnegative(),
    /** Hash of the descriptor that the frozen VM was a child of. */
    parent: hex64.nullable(),
  }),
});

/** What a child must have in common with its parent. */
export type Fingerprint = z.infer<typeof fingerprintSchema>;
/** All that is needed to start a child, but for the memory image. */
export type Descriptor = z.infer<typeof descriptorSchema>;

// Plain CBOR maps (RFC 8949): readable by any other implementation.
const codec = new Encoder({ useRecords: false, mapsAsObjects: true, tagUint8Array: false });

/** The file's bytes. Equal descriptors give equal bytes. */
export function encodeDescriptor(descriptor: Descriptor): Buffer {
  return Buffer.from(codec.encode(descriptor));
}

/**
 * Reads a descriptor file.
 *
 * @throws FlurryError DESCRIPTOR_INVALID naming what is wrong
 */
export function decodeDescriptor(bytes: Uint8Array): Descriptor {
  if (bytes.length > MAX_DESCRIPTOR_BYTES) {
    throw invalid(`it has ${bytes.length} bytes, more than ${MAX_DESCRIPTOR_BYTES}`);
  }
  let value: unknown;
  try {
    value = codec.decode(bytes);
  } catch (cause) {
    throw invalid(`no CBOR: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
  }
  const parsed = descriptorSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  throw invalid(`${issue?.path.join(".") || "it"}: ${issue?.message ?? "does not fit"}`);
}

/** Content address of a descriptor file: SHA-256 in hex. */
export function descriptorHash(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

/**
 * Refuses a descriptor that was made on another machine than `here`.
 *
 * @throws FlurryError FINGERPRINT_MISMATCH naming each field that differs, with both values
 */
export function checkFingerprint(descriptor: Descriptor, here: Fingerprint): void {
  const fields = Object.keys(here) as (keyof Fingerprint)[];
  const differing = fields.filter((field) => descriptor.fingerprint[field] !== here[field]);
  if (differing.length === 0) return;
  const list = differing.map(
    (f) => `${f} is "${here[f]}" here and "${descriptor.fingerprint[f]}" in the descriptor`,
  );
  throw new FlurryError("FINGERPRINT_MISMATCH", `Cannot fork from this descriptor: ${list.join("; ")}`, {
    hint: "boot a new parent on this machine",
  });
}

function invalid(reason: string, cause?: unknown): FlurryError {
  return new FlurryError("DESCRIPTOR_INVALID", `Cannot read descriptor: ${reason}`, { cause });
}
