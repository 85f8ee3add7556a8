import { descriptorHash, encodeDescriptor } from "../../memserver/descriptor.ts";
import { ENTRY_BYTES, PageTable, pageEntry } from "../../memserver/image/page-table.ts";
import {
  answerReader,
  type PeerAnswer,
  type PeerRequest,
  requestReader,
} from "../../memserver/peer/messages.ts";
import type { ImageProvider, ServedImage } from "../../memserver/peer/served-image.ts";
import { PAGE_BYTES } from "../../memserver/stream/format.ts";
import { Dice } from "./dice.ts";
import { pagesOf } from "./memserver-pages.ts";
import { chunksOf } from "./memserver-streams.ts";

const HASH = "0123456789abcdef".repeat(4);
/** The request key under which `MadeUpImage.provider` has its image. */
export const KEY = "89abcdef01234567".repeat(4);

/** A memory image in this process, with its descriptor. */
export class MadeUpImage {
  readonly bytes: Buffer;
  readonly table: PageTable;
  readonly descriptor: Buffer;
  /** Of the descriptor. */
  readonly hash: string;
  readonly workingSet: Uint32Array | undefined;

  constructor(bytes: Buffer, workingSet?: Uint32Array) {
    this.bytes = bytes;
    this.workingSet = workingSet;
    const entries = Buffer.alloc((bytes.length / PAGE_BYTES) * ENTRY_BYTES);
    for (let at = 0; at < bytes.length; at += PAGE_BYTES) {
      pageEntry(bytes.subarray(at, at + PAGE_BYTES)).copy(entries, (at / PAGE_BYTES) * ENTRY_BYTES);
    }
    this.table = new PageTable(entries);
    this.descriptor = encodeDescriptor({
      ...{ format: "flurry-descriptor", version: 3, hooks: 0, frozenAt: 1_750_000_000_000 },
      fingerprint: {
        ...{ qemu: "QEMU emulator version 10.0.2", machine: "pc-q35-10.0", cpu: "max", accel: "tcg" },
        ...{ cpus: 1, memBytes: bytes.length, devices: HASH, image: "base", hostCpu: "" },
      },
      deviceState: Uint8Array.of(4, 0, 1, 2, 0),
      ram: { block: "ram0", bytes: bytes.length, hash: this.table.root },
      lineage: { generation: 0, parent: null },
    });
    this.hash = descriptorHash(this.descriptor);
  }

  get pages(): number {
    return this.table.pages;
  }

  /** Pages that are not zero. */
  get filled(): number[] {
    return Array.from({ length: this.pages }, (_value, page) => page).filter(
      (page) => !this.table.isZero(page),
    );
  }

  /** Gives this image, and nothing else. */
  get provider(): ImageProvider {
    return {
      find: async (key) => (key === KEY ? this.hash : undefined),
      open: async (hash) => (hash === this.hash ? this.served() : undefined),
    };
  }

  served(change: Partial<ServedImage> = {}): ServedImage {
    return {
      ...{ descriptor: this.descriptor, table: this.table, workingSet: async () => this.workingSet },
      read: (page, count, target, at) => {
        this.bytes.copy(target, at, page * PAGE_BYTES, (page + count) * PAGE_BYTES);
        return true;
      },
      [Symbol.asyncDispose]: async () => undefined,
      ...change,
    };
  }

  page(page: number): Buffer {
    return this.bytes.subarray(page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
  }

  /** What a holder should answer. */
  range(first: number, count: number): Buffer {
    const pages = Array.from({ length: count }, (_value, at) => first + at);
    return Buffer.concat(pages.filter((page) => !this.table.isZero(page)).map((page) => this.page(page)));
  }
}

/** An image of these pages, the same in each run: half of it zeros, some of it compressible. */
export function madeUpImage(pages: number, seed = 1): MadeUpImage {
  const dice = new Dice(seed);
  const bytes = Buffer.alloc(pages * PAGE_BYTES);
  for (let page = 0; page < pages; ) {
    const run = Math.min(dice.int(1, 40), pages - page);
    const kind = dice.pick(["zero", "zero", "noise", "text"]);
    for (let at = page; at < page + run; at++) {
      const target = bytes.subarray(at * PAGE_BYTES, (at + 1) * PAGE_BYTES);
      if (kind === "noise") {
        for (let word = 0; word < PAGE_BYTES; word += 4)
          target.writeInt32LE(dice.int(-(2 ** 31), 2 ** 31 - 1), word);
      } else if (kind === "text") target.fill(`page ${at} `);
    }
    page += run;
  }
  return new MadeUpImage(bytes);
}

const HASH_OF_SOMETHING = "fedcba9876543210".repeat(4);

/** One request of each kind. */
export const PEER_REQUESTS: readonly PeerRequest[] = [
  { kind: "find", id: 1, key: KEY },
  { kind: "open", id: 2, hash: HASH_OF_SOMETHING },
  { kind: "table", id: 3, image: 1, first: 0, count: 16_384 },
  { kind: "read", id: 0xffff_ffff, image: 1, first: 7, count: 256, urgent: true },
  { kind: "read", id: 5, image: 2, first: 0xffff_ffff, count: 1, urgent: false },
  { kind: "working-set", id: 6, image: 1, first: 0, count: 3 },
  { kind: "close", id: 0, image: 1 },
];

/** One answer of each kind. */
export const PEER_ANSWERS: readonly PeerAnswer[] = [
  { kind: "found", id: 1, hash: HASH_OF_SOMETHING },
  { kind: "none", id: 2 },
  { kind: "opened", id: 3, image: 1, pages: 2 ** 28, descriptor: Buffer.from("descriptor") },
  { kind: "table", id: 4, first: 16_384, entries: Buffer.alloc(3 * ENTRY_BYTES, 7) },
  { kind: "pages", id: 5, first: 9, count: 2, encoding: "raw", bytes: pagesOf(9, 2) },
  { kind: "pages", id: 6, first: 9, count: 256, encoding: "zstd", bytes: Buffer.from("none really") },
  { kind: "pages", id: 7, first: 9, count: 1, encoding: "raw", bytes: Buffer.alloc(0) },
  { kind: "missing", id: 8 },
  { kind: "error", id: 9, code: "IMAGE_CORRUPT", message: "Cannot read it" },
  { kind: "working-set", id: 10, first: 0, pages: [5, 3, 0xffff_ffff] },
  { kind: "working-set", id: 11, first: 3, pages: [] },
];

/** All requests of a client's bytes, with their HELLO. */
export function readRequests(bytes: Uint8Array, lengths: readonly number[] = []): PeerRequest[] {
  const requests: PeerRequest[] = [];
  const reader = requestReader((request) => requests.push(request));
  for (const chunk of chunksOf(bytes, lengths)) reader.push(chunk);
  return requests;
}

/** All answers of a server's bytes, with their HELLO. */
export function readAnswers(bytes: Uint8Array, lengths: readonly number[] = []): PeerAnswer[] {
  const answers: PeerAnswer[] = [];
  const reader = answerReader((answer) => answers.push(kept(answer)));
  for (const chunk of chunksOf(bytes, lengths)) reader.push(chunk);
  return answers;
}

/** What is left of an answer when its bytes are gone: a copy. */
function kept(answer: PeerAnswer): PeerAnswer {
  if (answer.kind === "opened") return { ...answer, descriptor: Buffer.from(answer.descriptor) };
  if (answer.kind === "table") return { ...answer, entries: Buffer.from(answer.entries) };
  if (answer.kind === "pages") return { ...answer, bytes: Buffer.from(answer.bytes) };
  return answer;
}
