import { Gathered } from "./feed.ts";
import {
  CAPABILITIES_ID,
  command,
  flag,
  HEADER_BYTES,
  MAGIC,
  MAX_PAYLOAD_BYTES,
  PAGE_BYTES,
  type PageRange,
  RAM_ID,
  RAM_VERSION,
  type RamBlock,
  STREAM_VERSION,
  type StreamItem,
  section,
} from "./format.ts";

const NO_PAYLOAD = Buffer.alloc(0);
const RANGE_BYTES = 16;

/**
 * Writes a migration stream into one buffer, from which `take` hands out what has come together, so
 * that a run of many pages is one write to the socket.
 */
export class StreamWriter {
  #out = new Gathered();
  #current: string | undefined;

  /** How many bytes `take` would give. */
  get length(): number {
    return this.#out.length;
  }

  /** What was written since the last time. The writer does not touch it again. */
  take(): Buffer {
    const bytes = this.#out.bytes;
    this.#out = new Gathered();
    return bytes;
  }

  header(): this {
    const at = this.#out.space(HEADER_BYTES);
    this.#out.buffer.writeUInt32BE(MAGIC, at);
    this.#out.buffer.writeUInt32BE(STREAM_VERSION, at + 4);
    return this;
  }

  /** @param capabilities - those that change the stream; both ends must have the same */
  configuration(machine: string, capabilities: readonly string[] = []): this {
    this.#byte(section.configuration);
    this.#u32(machine.length);
    this.#text(machine);
    if (capabilities.length === 0) return this;
    this.#byte(section.subsection);
    this.#name(CAPABILITIES_ID);
    this.#u32(1);
    this.#u32(capabilities.length);
    for (const capability of capabilities) this.#name(capability);
    return this;
  }

  openReturnPath(): this {
    return this.#command(command.openReturnPath);
  }

  /** The other end answers with a PONG of the same value. */
  ping(value: number): this {
    const payload = Buffer.alloc(4);
    payload.writeUInt32BE(value);
    return this.#command(command.ping, payload);
  }

  /** Announces postcopy: goes before the block list. */
  advise(): this {
    const payload = Buffer.alloc(16);
    payload.writeUInt32BE(PAGE_BYTES, 4);
    payload.writeUInt32BE(PAGE_BYTES, 12);
    return this.#command(command.advise, payload);
  }

  /** The RAM section's START: the list of all blocks, which all have an address or none. */
  blocks(sectionId: number, blocks: readonly RamBlock[]): this {
    this.#byte(section.start);
    this.#u32(sectionId);
    this.#name(RAM_ID);
    this.#u32(0);
    this.#u32(RAM_VERSION);
    this.#u64(blocks.reduce((sum, { bytes }) => sum + bytes, 0) + flag.memSize);
    for (const { name, bytes, address } of blocks) {
      this.#name(name);
      this.#u64(bytes);
      if (address !== undefined) this.#out.buffer.writeBigUInt64BE(address, this.#out.space(8));
    }
    return this.sectionEnd(sectionId);
  }

  /** Begins a PART of the RAM section. It may stay open for as long as there are pages. */
  part(sectionId: number): this {
    this.#byte(section.part);
    return this.#u32(sectionId);
  }

  /** Begins the END of the RAM section, which may have pages too. */
  end(sectionId: number): this {
    this.#byte(section.end);
    return this.#u32(sectionId);
  }

  /** Closes a PART or the END. */
  sectionEnd(sectionId: number): this {
    this.#u64(flag.eos);
    this.#byte(section.footer);
    return this.#u32(sectionId);
  }

  /**
   * Records for adjacent pages of a block.
   *
   * @param offset - of the first page in the block
   * @param data - whole pages
   * @param named - forces the first record to name its block; by default it does where it must
   * @throws RangeError when offset or data are not made of pages
   */
  pages(block: string, offset: number, data: Uint8Array, named = block !== this.#current): this {
    if (data.length % PAGE_BYTES !== 0) throw new RangeError(`${data.length} bytes are no pages`);
    for (let done = 0; done < data.length; done += PAGE_BYTES) {
      this.#record(flag.page, block, offset + done, named && done === 0);
      const at = this.#out.space(PAGE_BYTES);
      this.#out.buffer.set(data.subarray(done, done + PAGE_BYTES), at);
    }
    return this;
  }

  /** Record for a page of zeros, without payload; else as `pages`. */
  zero(block: string, offset: number, named = block !== this.#current): this {
    this.#record(flag.zero, block, offset, named);
    return this.#byte(0);
  }

  /** Has the other end forget these pages, in as many commands as it takes. */
  discard(block: string, ranges: readonly PageRange[]): this {
    const head = 3 + block.length;
    const most = Math.floor((MAX_PAYLOAD_BYTES - head) / RANGE_BYTES);
    for (let from = 0; from < ranges.length; from += most) {
      const some = ranges.slice(from, from + most);
      this.#byte(section.command);
      this.#u16(command.discard);
      this.#u16(head + some.length * RANGE_BYTES);
      this.#byte(0);
      this.#name(block);
      this.#byte(0);
      for (const { start, length } of some) {
        this.#u64(start);
        this.#u64(length);
      }
    }
    return this;
  }

  /** What the other end gets whole before it acts on it: LISTEN, the device state, RUN. */
  package(write: (inner: StreamWriter) => void): this {
    const inner = new StreamWriter();
    write(inner);
    const size = Buffer.alloc(4);
    size.writeUInt32BE(inner.length);
    this.#command(command.packaged, size);
    return this.#bytes(inner.take());
  }

  listen(): this {
    return this.#command(command.listen);
  }

  run(): this {
    return this.#command(command.run);
  }

  /** FULL sections as they were read. */
  devices(sections: Uint8Array): this {
    return this.#bytes(sections);
  }

  /** Asks which pages of the block have arrived, to recover. */
  recvBitmap(block: string): this {
    return this.#command(command.recvBitmap, Buffer.from([block.length, ...Buffer.from(block, "latin1")]));
  }

  /** Ends the recovery. */
  resume(): this {
    return this.#command(command.resume);
  }

  switchoverStart(): this {
    return this.#command(command.switchoverStart);
  }

  eof(): this {
    return this.#byte(section.eof);
  }

  /** After EOF: JSON about the device state; `{}` keeps QEMU from complaining about none. */
  description(json: Uint8Array): this {
    this.#byte(section.description);
    this.#u32(json.length);
    return this.#bytes(json);
  }

  /** Writes what was read, byte for byte. */
  item(item: StreamItem): this {
    switch (item.kind) {
      case "header":
        return this.header();
      case "configuration":
        return this.configuration(item.machine, item.capabilities);
      case "open-return-path":
        return this.openReturnPath();
      case "ping":
        return this.ping(item.value);
      case "advise":
        return this.advise();
      case "listen":
        return this.listen();
      case "run":
        return this.run();
      case "discard":
        return this.discard(item.block, item.ranges);
      case "package":
        return this.package((inner) => {
          for (const each of item.items) inner.item(each);
        });
      case "resume":
        return this.resume();
      case "recv-bitmap":
        return this.recvBitmap(item.block);
      case "switchover-start":
        return this.switchoverStart();
      case "blocks":
        return this.blocks(item.sectionId, item.blocks);
      case "part":
        return this.part(item.sectionId);
      case "end":
        return this.end(item.sectionId);
      case "zero":
        return this.zero(item.block, item.offset, item.named);
      case "page":
        return this.pages(item.block, item.offset, item.data, item.named);
      case "section-end":
        return this.sectionEnd(item.sectionId);
      case "devices":
        return this.devices(item.bytes);
      case "eof":
        return this.eof();
      case "description":
        return this.description(item.bytes);
    }
  }

  #record(what: number, block: string, offset: number, named: boolean): void {
    if (offset % PAGE_BYTES !== 0) throw new RangeError(`Offset ${offset} is no page's`);
    this.#u64(offset + what + (named ? 0 : flag.continue));
    if (named) this.#name(block);
    this.#current = block;
  }

  #command(code: number, payload: Uint8Array = NO_PAYLOAD): this {
    this.#byte(section.command);
    this.#u16(code);
    this.#u16(payload.length);
    return this.#bytes(payload);
  }

  #byte(value: number): this {
    const at = this.#out.space(1);
    this.#out.buffer[at] = value;
    return this;
  }

  #u16(value: number): this {
    const at = this.#out.space(2);
    this.#out.buffer.writeUInt16BE(value, at);
    return this;
  }

  #u32(value: number): this {
    const at = this.#out.space(4);
    this.#out.buffer.writeUInt32BE(value, at);
    return this;
  }

  #u64(value: number): this {
    this.#u32(Math.floor(value / 0x1_0000_0000));
    return this.#u32(value % 0x1_0000_0000);
  }

  #name(name: string): void {
    this.#byte(name.length);
    this.#text(name);
  }

  #text(text: string): void {
    const at = this.#out.space(text.length);
    this.#out.buffer.write(text, at, "latin1");
  }

  #bytes(bytes: Uint8Array): this {
    const at = this.#out.space(bytes.length);
    this.#out.buffer.set(bytes, at);
    return this;
  }
}
