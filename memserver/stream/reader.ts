import { blockOf, checkCommand, readCommand } from "./commands.ts";
import { isDescription, splitPackage, splitTail } from "./devices.ts";
import { Feed, Gathered } from "./feed.ts";
import {
  CAPABILITIES_ID,
  COMMAND_BYTES,
  command,
  FLAG_BITS,
  FOOTER_BYTES,
  flag,
  HEADER_BYTES,
  IGNORE_SHARED,
  invalid,
  MAGIC,
  MAX_BLOCKS,
  MAX_DESCRIPTION_BYTES,
  MAX_DEVICE_BYTES,
  PAGE_BYTES,
  RAM_ID,
  RAM_VERSION,
  type RamBlock,
  readName,
  readSize,
  STREAM_VERSION,
  type StreamItem,
  section,
} from "./format.ts";

const MAX_MACHINE_BYTES = 255;
const MAX_CAPABILITIES = 64;

export interface StreamReaderOptions {
  /** Of a stream that recovers an interrupted one, which has neither header nor block list: what that had. */
  recovers?: { sectionId: number; blocks: readonly RamBlock[] } | undefined;
}

/**
 * Reads a migration stream strictly: what it does not know it refuses, since nothing in the stream
 * says where an unknown section ends. It holds one unfinished unit (64 KiB at most) and the device
 * state (16 MiB at most), whatever comes in.
 *
 * Not supported are blocks of huge pages, `mapped-ram`, `multifd` and compression.
 */
export class StreamReader {
  readonly #emit: (item: StreamItem) => void;
  readonly #feed = new Feed((bytes, start, end, at) => this.#step(bytes, start, end, at));
  readonly #blocks = new Map<string, RamBlock>();
  #step: (bytes: Buffer, start: number, end: number, at: number) => number;
  #gathered = new Gathered();
  #gatheredFrom = 0;
  #configuration: { at: number; machine: string; capabilities: string[] | undefined } | undefined;
  #ram: { state: "none" | "open" | "ended"; sectionId: number } = { state: "none", sectionId: 0 };
  #start = { at: 0, missing: 0 };
  #current: RamBlock | undefined;
  #packaged = false;
  #ended = false;

  /**
   * @param emit - takes each item during `push`. Its bytes are views that are valid during the call
   * only, and what it throws ends the reader.
   */
  constructor(emit: (item: StreamItem) => void, { recovers }: StreamReaderOptions = {}) {
    this.#emit = emit;
    this.#step = recovers ? this.#section : this.#header;
    if (!recovers) return;
    this.#ram = { state: "open", sectionId: recovers.sectionId };
    this.#packaged = true;
    for (const block of recovers.blocks) this.#blocks.set(block.name, block);
  }

  /**
   * Takes the next bytes, as many as there are.
   *
   * @throws FlurryError STREAM_INVALID with the offset of what is wrong; from then on always
   */
  push(chunk: Uint8Array): void {
    this.#feed.push(chunk);
  }

  /**
   * Says that no more bytes come. Only now can the device state of a precopy stream be told from what
   * follows it.
   *
   * @throws FlurryError STREAM_INVALID when the stream is not complete
   */
  end(): void {
    if (this.#step === this.#devices) {
      for (const item of splitTail(this.#gathered.bytes, this.#gatheredFrom)) this.#emit(item);
      return;
    }
    const at = this.#feed.offset + this.#feed.held;
    if (!this.#ended || this.#feed.held > 0) throw invalid(at, "stream ends too early");
  }

  #header(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < HEADER_BYTES) return -HEADER_BYTES;
    if (bytes.readUInt32BE(start) !== MAGIC) throw invalid(at, "magic is not QEVM");
    const version = bytes.readUInt32BE(start + 4);
    if (version !== STREAM_VERSION) throw invalid(at + 4, `version ${version} is not ${STREAM_VERSION}`);
    this.#step = this.#machine;
    this.#emit({ kind: "header", at });
    return HEADER_BYTES;
  }

  #machine(bytes: Buffer, start: number, end: number, at: number): number {
    if (bytes[start] !== section.configuration)
      throw invalid(at, `section ${bytes[start]} before configuration`);
    if (end - start < 5) return -5;
    const length = bytes.readUInt32BE(start + 1);
    if (length === 0 || length > MAX_MACHINE_BYTES) throw invalid(at, `machine name has ${length} bytes`);
    if (end - start < 5 + length) return -(5 + length);
    const machine = readName(bytes, start + 5, length, at + 5);
    this.#configuration = { at, machine, capabilities: undefined };
    this.#step = this.#subsection;
    return 5 + length;
  }

  /** What of the configuration may follow, or the first section. */
  #subsection(bytes: Buffer, start: number, end: number, at: number): number {
    const { capabilities, ...configuration } = this.#configuration!;
    if (bytes[start] !== section.subsection) {
      this.#step = this.#section;
      this.#emit({ kind: "configuration", ...configuration, capabilities: capabilities ?? [] });
      return 0;
    }
    if (end - start < 2) return -2;
    const nameEnd = 2 + bytes[start + 1]!;
    if (end - start < nameEnd + 8) return -(nameEnd + 8);
    const name = bytes.toString("latin1", start + 2, start + nameEnd);
    if (name !== CAPABILITIES_ID || capabilities)
      throw invalid(at, `unexpected subsection ${JSON.stringify(name)}`);
    const version = bytes.readUInt32BE(start + nameEnd);
    const count = bytes.readUInt32BE(start + nameEnd + 4);
    if (version !== 1) throw invalid(at, `capabilities of version ${version}`);
    if (count === 0 || count > MAX_CAPABILITIES) throw invalid(at, `${count} capabilities`);
    const names: string[] = [];
    let used = nameEnd + 8;
    while (names.length < count) {
      if (end - start < used + 1) return -(used + 1);
      const length = bytes[start + used]!;
      if (end - start < used + 1 + length) return -(used + 1 + length);
      names.push(readName(bytes, start + used + 1, length, at + used));
      used += 1 + length;
    }
    const other = names.find((capability) => capability !== IGNORE_SHARED);
    if (other) throw invalid(at, `capability "${other}" is not supported`);
    this.#configuration!.capabilities = names;
    return used;
  }

  #section(bytes: Buffer, start: number, end: number, at: number): number {
    const type = bytes[start]!;
    switch (type) {
      case section.eof:
        if (this.#ram.state === "open") throw invalid(at, "EOF before the end of the RAM section");
        this.#step = this.#description;
        this.#ended = true;
        this.#emit({ kind: "eof", at });
        return 1;
      case section.start:
        return this.#startSection(bytes, start, end, at);
      case section.part:
      case section.end:
        return this.#continueSection(bytes, start, end, at);
      case section.full:
        if (this.#ram.state === "open" || this.#packaged) throw invalid(at, "device state out of its place");
        this.#gatheredFrom = at;
        this.#step = this.#devices;
        return 0;
      case section.command:
        return this.#command(bytes, start, end, at);
      default:
        throw invalid(at, `unknown section type ${type}`);
    }
  }

  #startSection(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < 6) return -6;
    const nameEnd = 6 + bytes[start + 5]!;
    if (end - start < nameEnd + 16) return -(nameEnd + 16);
    const name = bytes.toString("latin1", start + 6, start + nameEnd);
    const instance = bytes.readUInt32BE(start + nameEnd);
    const version = bytes.readUInt32BE(start + nameEnd + 4);
    if (name !== RAM_ID || instance !== 0 || version !== RAM_VERSION) {
      throw invalid(at, `unknown section ${JSON.stringify(name)}, instance ${instance}, version ${version}`);
    }
    if (this.#ram.state !== "none") throw invalid(at, "second RAM section");
    if ((bytes.readUInt32BE(start + nameEnd + 12) & FLAG_BITS) !== flag.memSize) {
      throw invalid(at + nameEnd + 8, "RAM section without a block list");
    }
    const total = readSize(bytes, start + nameEnd + 8, at + nameEnd + 8) - flag.memSize;
    if (total === 0) throw invalid(at, "empty block list");
    this.#ram = { state: "open", sectionId: bytes.readUInt32BE(start + 1) };
    this.#start = { at, missing: total };
    this.#step = this.#block;
    return nameEnd + 16;
  }

  #block(bytes: Buffer, start: number, end: number, at: number): number {
    const addressed = this.#configuration?.capabilities?.includes(IGNORE_SHARED);
    const nameEnd = 1 + bytes[start]!;
    const used = nameEnd + (addressed ? 16 : 8);
    if (end - start < used) return -used;
    const name = readName(bytes, start + 1, nameEnd - 1, at);
    const length = readSize(bytes, start + nameEnd, at + nameEnd);
    if (length === 0 || length % PAGE_BYTES !== 0 || length > this.#start.missing) {
      throw invalid(at, `block "${name}" cannot have ${length} bytes`);
    }
    if (this.#blocks.has(name)) throw invalid(at, `block "${name}" is listed twice`);
    if (this.#blocks.size === MAX_BLOCKS) throw invalid(at, `more than ${MAX_BLOCKS} blocks`);
    const address = addressed ? { address: bytes.readBigUInt64BE(start + nameEnd + 8) } : {};
    this.#blocks.set(name, { name, bytes: length, ...address });
    this.#start.missing -= length;
    if (this.#start.missing === 0) this.#step = this.#blocksEnd;
    return used;
  }

  #blocksEnd(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < 8 + FOOTER_BYTES) return -(8 + FOOTER_BYTES);
    if (readSize(bytes, start, at) !== flag.eos) throw invalid(at, "block list without an end");
    this.#checkFooter(bytes, start + 8, at + 8);
    this.#step = this.#section;
    const { sectionId } = this.#ram;
    this.#emit({ kind: "blocks", at: this.#start.at, sectionId, blocks: [...this.#blocks.values()] });
    return 8 + FOOTER_BYTES;
  }

  #continueSection(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < 5) return -5;
    const sectionId = bytes.readUInt32BE(start + 1);
    if (this.#ram.state !== "open" || sectionId !== this.#ram.sectionId) {
      throw invalid(at, `section ${sectionId} is not open`);
    }
    const last = bytes[start] === section.end;
    if (last) this.#ram.state = "ended";
    this.#step = this.#record;
    this.#emit({ kind: last ? "end" : "part", at, sectionId });
    return 5;
  }

  #record(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < 8) return -8;
    const low = bytes.readUInt32BE(start + 4);
    const flags = low & FLAG_BITS;
    if (flags === flag.eos) return this.#sectionEnd(bytes, start, end, at);
    const what = flags & ~flag.continue;
    if (what !== flag.page && what !== flag.zero) {
      throw invalid(at, `record with flags 0x${flags.toString(16)}`);
    }
    const named = (flags & flag.continue) === 0;
    let head = 8;
    let block = this.#current;
    if (named) {
      if (end - start < 9) return -9;
      head = 9 + bytes[start + 8]!;
    }
    const used = head + (what === flag.page ? PAGE_BYTES : 1);
    if (end - start < used) return -used;
    if (named) block = blockOf(this.#blocks, bytes.toString("latin1", start + 9, start + head), at);
    if (!block) throw invalid(at, "record continues no block");
    const offset = readSize(bytes, start, at) - flags;
    if (offset >= block.bytes) {
      throw invalid(at, `page ${offset} is outside of block "${block.name}" of ${block.bytes} bytes`);
    }
    this.#current = block;
    if (what === flag.page) {
      const data = bytes.subarray(start + head, start + used);
      this.#emit({ kind: "page", at, block: block.name, offset, named, data });
      return used;
    }
    if (bytes[start + head] !== 0)
      throw invalid(at, `page is filled with ${bytes[start + head]} instead of 0`);
    this.#emit({ kind: "zero", at, block: block.name, offset, named });
    return used;
  }

  #sectionEnd(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < 8 + FOOTER_BYTES) return -(8 + FOOTER_BYTES);
    if (readSize(bytes, start, at) !== flag.eos) throw invalid(at, "end of a section with an offset");
    this.#checkFooter(bytes, start + 8, at + 8);
    this.#step = this.#section;
    this.#emit({ kind: "section-end", at, sectionId: this.#ram.sectionId });
    return 8 + FOOTER_BYTES;
  }

  #checkFooter(bytes: Buffer, start: number, at: number): void {
    const matches = bytes[start] === section.footer && bytes.readUInt32BE(start + 1) === this.#ram.sectionId;
    if (!matches) throw invalid(at, `section ${this.#ram.sectionId} ends without its footer`);
  }

  #command(bytes: Buffer, start: number, end: number, at: number): number {
    if (end - start < COMMAND_BYTES) return -COMMAND_BYTES;
    const code = bytes.readUInt16BE(start + 1);
    const length = bytes.readUInt16BE(start + 3);
    checkCommand(code, length, at);
    const used = COMMAND_BYTES + length;
    if (end - start < used) return -used;
    if (code !== command.packaged) {
      this.#emit(readCommand(bytes, start, at, this.#blocks));
      return used;
    }
    const size = bytes.readUInt32BE(start + COMMAND_BYTES);
    if (size === 0 || size > MAX_DEVICE_BYTES) throw invalid(at, `package of ${size} bytes`);
    if (this.#ram.state === "none" || this.#packaged) throw invalid(at, "package out of its place");
    this.#packaged = true;
    this.#gatheredFrom = at;
    this.#step = (...rest) => this.#package(size, ...rest);
    return used;
  }

  #package(size: number, bytes: Buffer, start: number, end: number, at: number): number {
    const used = Math.min(end - start, size - this.#gathered.length);
    this.#gathered.add(bytes, start, start + used);
    if (this.#gathered.length < size) return used;
    const items = splitPackage(this.#gathered.bytes, at + used - size);
    this.#gathered = new Gathered();
    this.#step = this.#section;
    this.#emit({ kind: "package", at: this.#gatheredFrom, items });
    return used;
  }

  /** All the rest is device state, for now. */
  #devices(bytes: Buffer, start: number, end: number, at: number): number {
    this.#gathered.add(bytes, start, end);
    if (this.#gathered.length > MAX_DEVICE_BYTES) {
      throw invalid(at, `device state of more than ${MAX_DEVICE_BYTES} bytes`);
    }
    return end - start;
  }

  #description(bytes: Buffer, start: number, end: number, at: number): number {
    this.#ended = false;
    if (bytes[start] !== section.description) throw invalid(at, `section type ${bytes[start]} after EOF`);
    if (end - start < 5) return -5;
    const size = bytes.readUInt32BE(start + 1);
    if (size < 2 || size > MAX_DESCRIPTION_BYTES) throw invalid(at, `description of ${size} bytes`);
    this.#gatheredFrom = at;
    this.#step = (...rest) => this.#descriptionText(size, ...rest);
    return 5;
  }

  #descriptionText(size: number, bytes: Buffer, start: number, end: number, at: number): number {
    if (this.#ended) throw invalid(at, "bytes after the description");
    const used = Math.min(end - start, size - this.#gathered.length);
    this.#gathered.add(bytes, start, start + used);
    if (this.#gathered.length < size) return used;
    if (!isDescription(this.#gathered.bytes)) throw invalid(this.#gatheredFrom, "description is no JSON");
    this.#ended = true;
    this.#emit({ kind: "description", at: this.#gatheredFrom, bytes: this.#gathered.bytes });
    return used;
  }
}
