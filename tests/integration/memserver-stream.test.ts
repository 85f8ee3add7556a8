import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { chmodSync, readFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { PAGE_BYTES, type RamBlock, type StreamItem } from "../../memserver/stream/format.ts";
import { StreamReader } from "../../memserver/stream/reader.ts";
import {
  encodeReturnMessage,
  type ReturnMessage,
  ReturnPathReader,
} from "../../memserver/stream/return-path.ts";
import { StreamWriter } from "../../memserver/stream/writer.ts";
import { type BootedVm, bootVm } from "../../runtime/fork/boot.ts";
import { Host } from "../../runtime/vm/host.ts";
import { RAM_BLOCK } from "../../runtime/vm/profile.ts";
import { baseImage, SETUP_MS, TEST_MS } from "../support/vm.ts";

const MEM_MIB = 128;
const RAM_BYTES = MEM_MIB * 1024 * 1024;
const WRITE_BYTES = 1024 * 1024;

let host: Host;
let vm: BootedVm;

beforeAll(async () => {
  host = await Host.open();
  const image = await baseImage();
  const profile = { accel: "tcg", memMiB: MEM_MIB, cpus: 1, disk: image.disk } as const;
  vm = await bootVm({ host, profile, boot: image, ram: "shared" });
  const bandwidth = { "max-bandwidth": 10_000_000_000, "max-postcopy-bandwidth": 0 };
  await vm.qemu.qmp.executeUntyped("migrate-set-parameters", bandwidth);
}, SETUP_MS);

afterAll(async () => {
  await vm[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

/** What a real source sends, read and written again on the way. */
class Capture {
  readonly items: StreamItem["kind"][] = [];
  readonly returned: ReturnMessage[] = [];
  readonly ram = Buffer.alloc(RAM_BYTES);
  readonly #read = createHash("sha256");
  readonly #written = createHash("sha256");
  readonly #writer = new StreamWriter();
  readonly #reader = new StreamReader((item) => this.#take(item));
  readonly #socket: Socket;
  blocks: RamBlock[] = [];
  capabilities: string[] = [];
  discarded = 0;
  bytes = 0;
  packaged: string[] = [];
  deviceBytes = 0;
  description: unknown;

  constructor(socket: Socket) {
    this.#socket = socket;
  }

  async run(): Promise<{ read: string; written: string }> {
    for await (const chunk of this.#socket as AsyncIterable<Buffer>) {
      this.bytes += chunk.length;
      this.#read.update(chunk);
      this.#reader.push(chunk);
      if (this.#writer.length > WRITE_BYTES) this.#written.update(this.#writer.take());
    }
    this.#reader.end();
    this.#written.update(this.#writer.take());
    return { read: this.#read.digest("hex"), written: this.#written.digest("hex") };
  }

  #answer(message: ReturnMessage): void {
    this.returned.push(message);
    this.#socket.write(encodeReturnMessage(message));
  }

  #take(item: StreamItem): void {
    this.#writer.item(item);
    if (item.kind !== "page" && item.kind !== "zero") this.items.push(item.kind);
    switch (item.kind) {
      case "configuration":
        this.capabilities = item.capabilities;
        break;
      case "ping":
        this.#answer({ kind: "pong", at: 0, value: item.value });
        break;
      case "blocks":
        this.blocks = item.blocks;
        break;
      case "discard":
        for (const { length } of item.ranges) this.discarded += length;
        break;
      case "package":
        this.packaged = item.items.map(({ kind }) => kind);
        // A page that the guest would wait for, asked for in both forms.
        this.#answer({
          kind: "request",
          at: 0,
          block: RAM_BLOCK,
          start: RAM_BYTES / 2,
          length: PAGE_BYTES,
          named: true,
        });
        this.#answer({
          kind: "request",
          at: 0,
          block: RAM_BLOCK,
          start: 0,
          length: PAGE_BYTES,
          named: false,
        });
        break;
      case "page":
        if (item.block === RAM_BLOCK) this.ram.set(item.data, item.offset);
        break;
      case "zero":
        if (item.block === RAM_BLOCK) this.ram.fill(0, item.offset, item.offset + PAGE_BYTES);
        break;
      case "devices":
        this.deviceBytes = item.bytes.length;
        break;
      case "description":
        this.description = JSON.parse(Buffer.from(item.bytes).toString());
        break;
      case "eof":
        if (this.items.includes("open-return-path")) this.#answer({ kind: "shut", at: 0, status: 0 });
    }
  }
}

/** Migrates the VM to a socket of ours, with these capabilities. */
async function migrated(capabilities: ("postcopy-ram" | "x-ignore-shared")[]) {
  const { qmp, dir } = vm.qemu;
  const set = (state: boolean) =>
    qmp.execute("migrate-set-capabilities", {
      capabilities: [...capabilities, "events" as const].map((capability) => ({ capability, state })),
    });
  const postcopy = capabilities.includes("postcopy-ram");
  const path = join(dir, "s");
  using stack = new DisposableStack();
  const server = stack.adopt(createServer(), (listening) => listening.close());
  server.listen(path);
  await once(server, "listening");
  chmodSync(path, 0o666);
  await set(true);
  const connection = once(server, "connection");
  using completed = qmp.expect("MIGRATION", {
    timeoutMs: TEST_MS,
    filter: ({ data }) => data.status === "completed" || data.status === "failed",
  });
  await qmp.execute("migrate", { uri: `unix:${path}` });
  const [socket] = (await connection) as [Socket];
  const capture = new Capture(socket);
  const capturing = capture.run();
  if (postcopy) await qmp.executeUntyped("migrate-start-postcopy");
  const hashes = await capturing;
  expect((await completed).data.status).toBe("completed");
  await set(false);
  return { capture, hashes };
}

/** Of the file that is the guest's memory, while the guest stands still. */
function differingPages(ram: Buffer): number {
  const file = readFileSync(vm.ramPath!);
  let count = 0;
  for (let at = 0; at < RAM_BYTES; at += PAGE_BYTES) {
    if (file.compare(ram, at, at + PAGE_BYTES, at, at + PAGE_BYTES) !== 0) count++;
  }
  return count;
}

async function goOn(): Promise<void> {
  await vm.qemu.qmp.execute("cont");
  await vm.agent.ping();
}

describe("the stream of a real source", () => {
  test(
    "is read, and written the same, in precopy",
    async () => {
      const { capture, hashes } = await migrated([]);
      expect(hashes.written).toBe(hashes.read);
      expect(capture.items.slice(0, 3)).toEqual(["header", "configuration", "blocks"]);
      expect(capture.items.slice(-5)).toEqual(["end", "section-end", "devices", "eof", "description"]);
      expect(capture.blocks[0]).toEqual({ name: RAM_BLOCK, bytes: RAM_BYTES });
      expect(capture.deviceBytes).toBeGreaterThan(10_000);
      expect(capture.description).toHaveProperty("devices");
      expect(differingPages(capture.ram)).toBe(0);
      const { ram } = await vm.qemu.qmp.execute("query-migrate");
      expect(ram?.total).toBe(capture.blocks.reduce((sum, { bytes }) => sum + bytes, 0));
      await goOn();
    },
    TEST_MS,
  );

  test(
    "is read, and written the same, without the memory that is shared",
    async () => {
      const { capture, hashes } = await migrated(["x-ignore-shared"]);
      expect(hashes.written).toBe(hashes.read);
      expect(capture.capabilities).toEqual(["x-ignore-shared"]);
      expect(capture.blocks.every(({ address }) => address !== undefined)).toBe(true);
      expect(capture.bytes).toBeLessThan(2_000_000);
      await goOn();
    },
    TEST_MS,
  );

  test(
    "is read, and written the same, in postcopy, and answered on the return path",
    async () => {
      const { capture, hashes } = await migrated(["postcopy-ram"]);
      expect(hashes.written).toBe(hashes.read);
      const start = ["header", "configuration", "open-return-path", "ping", "advise", "blocks"];
      expect(capture.items.slice(0, start.length)).toEqual(start as typeof capture.items);
      expect(capture.items).toContain("discard");
      expect(capture.items.at(-1)).toBe("eof");
      expect(capture.packaged).toEqual(["listen", "devices", "ping", "run"]);
      expect(capture.discarded).toBeGreaterThan(0);
      expect(differingPages(capture.ram)).toBe(0);
      const said = Buffer.concat(capture.returned.map(encodeReturnMessage));
      const heard: string[] = [];
      new ReturnPathReader(capture.blocks, ({ kind }) => heard.push(kind)).push(said);
      expect(heard).toEqual(capture.returned.map(({ kind }) => kind));
    },
    TEST_MS,
  );
});
