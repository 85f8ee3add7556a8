import { close, open, read, write } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import type { Port, PortEvents } from "./port.ts";

const READ_BYTES = 65_536;
/** One write: as much as the driver takes at once, so that what is dropped is dropped after no more. */
const WRITE_BYTES = 32_768;
/**
 * How often a port without a host is looked at, in milliseconds: soon at first, since the host that
 * follows a fork is there at once, then less and less.
 */
const PATIENCE = { first: 1, longest: 50 };

/**
 * A virtio-serial port. The kernel's driver blocks a read while a host is connected and has sent
 * nothing, and answers 0 bytes while none is; so reads wait on a thread of Bun's pool, and only a port
 * without a host is asked again by the clock. Nothing is lost by that: the driver keeps what a new host
 * sends first. A write blocks while the host reads nothing, which takes a second thread: the pool needs
 * two more than the worker does (`UV_THREADPOOL_SIZE`).
 *
 * Source: Linux, drivers/char/virtio_console.c, port_fops_read and port_fops_write
 */
export class DevicePort implements Port {
  readonly #input: number;
  readonly #output: number;
  readonly #outgoing = { epoch: 0, last: Promise.resolve() };
  #closed = false;

  /** @param input - file descriptors of its own, which may be the same one */
  constructor(input: number, output: number) {
    this.#input = input;
    this.#output = output;
  }

  static async open(path: string): Promise<DevicePort> {
    const fd = await promisify(open)(path, "r+");
    return new DevicePort(fd, fd);
  }

  start(events: PortEvents): void {
    this.#readAll(events).catch((error) => {
      if (!this.#closed) events.onFailed(error);
    });
  }

  write(bytes: Uint8Array): Promise<void> {
    const { epoch } = this.#outgoing;
    // One after the other: a write for a host that went may still be waiting for one to come.
    const written = this.#outgoing.last.then(() => this.#writeAll(bytes, epoch));
    this.#outgoing.last = written.catch(() => undefined); // whoever asked for it is told
    return written;
  }

  forget(): void {
    this.#outgoing.epoch++;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#closed = true;
    for (const fd of new Set([this.#input, this.#output])) await promisify(close)(fd);
  }

  /** What the driver has taken stays taken: a new host skips it, since a marker follows. */
  async #writeAll(bytes: Uint8Array, epoch: number): Promise<void> {
    for (let at = 0; at < bytes.length && !this.#closed && epoch === this.#outgoing.epoch; ) {
      at += await writeSome(this.#output, bytes.subarray(at, at + WRITE_BYTES));
    }
  }

  async #readAll(events: PortEvents): Promise<void> {
    const buffer = new Uint8Array(READ_BYTES);
    let patience = 0;
    while (!this.#closed) {
      const count = await readSome(this.#input, buffer);
      if (count > 0) {
        patience = 0;
        await events.onBytes(buffer.subarray(0, count));
        continue;
      }
      if (patience === 0) events.onHangup();
      patience = Math.min(Math.max(PATIENCE.first, 2 * patience), PATIENCE.longest);
      await sleep(patience);
    }
  }
}

function readSome(fd: number, buffer: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    // Position null: a device has none.
    read(fd, buffer, 0, buffer.length, null, (error, count) => (error ? reject(error) : resolve(count)));
  });
}

function writeSome(fd: number, bytes: Uint8Array): Promise<number> {
  return new Promise((resolve, reject) => {
    write(fd, bytes, 0, bytes.length, null, (error, count) => (error ? reject(error) : resolve(count)));
  });
}
