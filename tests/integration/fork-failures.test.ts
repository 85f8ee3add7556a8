import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { once } from "node:events";
import { connect, createServer, type Socket } from "node:net";
import { join } from "node:path";
import { Transform } from "node:stream";
import { incomingStream } from "../../memserver/device-stream.ts";
import { Child, type StartChildOptions } from "../../runtime/fork/child.ts";
import { MappedMemory } from "../../runtime/fork/child-memory.ts";
import type { UnprovenField } from "../../runtime/fork/identity.ts";
import { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import type { TakenShell } from "../../runtime/vm/shell-pool.ts";
import { rejection } from "../support/agent-peer.ts";
import {
  baseParent,
  NO_TRACES,
  openDescriptors,
  openedSince,
  SETUP_MS,
  stopProcess,
  TEST_MS,
  temporaryDirectory,
  tracesOf,
} from "../support/vm.ts";

const identity = { index: 3, hostname: "the-third" };

let host: Host;
let parent: Parent;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host);
}, SETUP_MS);

afterEach(() => {
  expect(tracesOf(host)).toEqual(NO_TRACES);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

/** Starts a child of this very shell. */
function startChild(taken: TakenShell, changes: Partial<StartChildOptions> = {}): Promise<Child> {
  const { descriptor, origin } = parent;
  const memory = new MappedMemory(incomingStream(descriptor.fingerprint.machine, descriptor.deviceState));
  const memBytes = descriptor.ram.bytes;
  return Child.start({ taken, shellMs: 0, memory, id: "vm-test", identity, memBytes, origin, ...changes });
}

/** Puts itself between a VM's agent and the host, and has a way with what the agent says. */
async function tamper(taken: TakenShell, change: (bytes: Buffer) => Buffer): Promise<AsyncDisposable> {
  const directory = temporaryDirectory();
  const server = createServer();
  await once(server.listen(join(directory.path, "s")), "listening");
  const connected = once(server, "connection") as Promise<[Socket]>;
  const ours = connect(join(directory.path, "s"));
  const [theirs] = await connected;
  const guest = taken.shell.qemu.agentSocket;
  for (const socket of [theirs, guest]) socket.on("error", () => socket.destroy());
  const transform = new Transform({ transform: (chunk, _encoding, done) => done(null, change(chunk)) });
  guest.pipe(transform).pipe(theirs).pipe(guest);
  Object.assign(taken.shell.qemu, { agentSocket: ours });
  return {
    [Symbol.asyncDispose]: async () => {
      ours.destroy();
      theirs.destroy();
      await new Promise((resolve) => server.close(resolve));
      directory[Symbol.dispose]();
    },
  };
}

describe("a child that is not proven", () => {
  test.each<[string, UnprovenField, (text: string) => string]>([
    ["another host name", "hostname", (text) => text.replace("the-third", "the-thurd")],
    ["another index", "index", (text) => text.replace("\xa5index\x03", "\xa5index\x04")],
    ["no entropy", "entropyBytes", (text) => text.replace("entropyBytes\x40", "entropyBytes\x00")],
    ["no reseed", "reseeded", (text) => text.replace("reseeded\xc3", "reseeded\xc2")],
  ])(
    "is killed when it answers with %s",
    async (_what, field, change) => {
      const taken = await parent.shells.take();
      let changed = 0;
      await using _peer = await tamper(taken, (bytes) => {
        const before = bytes.toString("latin1");
        const after = change(before);
        if (after !== before) changed++;
        return Buffer.from(after, "latin1");
      });
      const error = await rejection(startChild(taken));
      expect(changed).toBe(1);
      expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field, id: "vm-test" });
      await taken.shell.qemu.exited;
    },
    TEST_MS,
  );

  test(
    "is killed when it never answers",
    async () => {
      const taken = await parent.shells.take();
      let held = 0;
      await using _peer = await tamper(taken, (bytes) => {
        held += bytes.length;
        return Buffer.alloc(0);
      });
      const error = await rejection(startChild(taken, { timeoutMs: 2000 }));
      expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field: "answer" });
      expect(held).toBeGreaterThan(0);
      await taken.shell.qemu.exited;
    },
    TEST_MS,
  );

  test(
    "is killed when it answers with what is no message",
    async () => {
      const taken = await parent.shells.take();
      // 0xc1 is the one byte that means nothing in MessagePack.
      await using _peer = await tamper(taken, (bytes) =>
        Buffer.from(bytes.toString("latin1").replace("\xa9the-third", "\xc1the-third"), "latin1"),
      );
      // Found out by its bytes, and not by the deadline.
      const error = await rejection(startChild(taken, { timeoutMs: 10 * TEST_MS }));
      expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field: "channel" });
      await taken.shell.qemu.exited;
    },
    TEST_MS,
  );

  test(
    "is killed when its agent's channel is closed, without waiting for the deadline",
    async () => {
      const taken = await parent.shells.take();
      taken.shell.qemu.agentSocket.destroy();
      const error = await rejection(startChild(taken, { timeoutMs: 10 * TEST_MS }));
      expect(error).toMatchObject({ code: "CHILD_UNPROVEN", field: "channel" });
      await taken.shell.qemu.exited;
    },
    TEST_MS,
  );

  test(
    "is killed when QEMU stands still and the guest never runs",
    async () => {
      const taken = await parent.shells.take();
      await stopProcess(taken.shell.qemu.pid);
      const error = await rejection(startChild(taken, { timeoutMs: 500 }));
      expect(error.code).toBe("CHILD_UNPROVEN");
      expect(await taken.shell.qemu.exited).toMatchObject({ signal: "SIGKILL" });
    },
    TEST_MS,
  );
});

describe("fork()", () => {
  test(
    "rejects with FORK_FAILED when QEMU dies before the guest runs",
    async () => {
      const taken = await parent.shells.take();
      await stopProcess(taken.shell.qemu.pid);
      const starting = rejection(startChild(taken));
      process.kill(taken.shell.qemu.pid, "SIGKILL");
      const error = await starting;
      expect(error.code).toBe("FORK_FAILED");
      expect(error.message).toContain("killed by SIGKILL");
    },
    TEST_MS,
  );

  test(
    "rejects with FORK_FAILED and QEMU's own words when the device state is damaged",
    async () => {
      const { descriptor } = parent;
      const deviceState = Buffer.from(descriptor.deviceState).fill(0xee, 200, 2000);
      const { profile, imagePath } = parent;
      await using damaged = new Parent({
        host,
        profile,
        imagePath,
        descriptor: { ...descriptor, deviceState },
      });
      const error = await rejection(damaged.fork({ identity }));
      expect(error.code).toBe("FORK_FAILED");
      expect(error.message).toMatch(/exited with status 1: .*load of migration failed/s);
    },
    TEST_MS,
  );

  test(
    "ends with ABORTED at an abort, whenever it comes",
    async () => {
      const before = openDescriptors();
      {
        const { profile, imagePath, descriptor } = parent;
        await using own = new Parent({ host, profile, imagePath, descriptor, shells: 2 });
        for (const afterMs of [0, 3, 6, 12, 25, 50]) {
          await own.shells.keep(2);
          const abort = new AbortController();
          const forking = own.fork({ identity, signal: abort.signal }).then(
            (child) => child[Symbol.asyncDispose]().then(() => "forked before"),
            (error) => error.code,
          );
          setTimeout(() => abort.abort(), afterMs);
          expect(["ABORTED", "forked before"]).toContain(await forking);
        }
        const aborted = await rejection(own.fork({ identity, signal: AbortSignal.abort() }));
        expect(aborted.code).toBe("ABORTED");
      }
      expect(openedSince(before)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "rejects a descriptor of another machine by the name of what differs",
    async () => {
      const { profile, imagePath, descriptor } = parent;
      const { qemu } = descriptor.fingerprint;
      const fingerprint = { ...descriptor.fingerprint, qemu: "QEMU emulator version 1.0.0" };
      const error = await rejection(
        (async () => new Parent({ host, profile, imagePath, descriptor: { ...descriptor, fingerprint } }))(),
      );
      expect(error.code).toBe("FINGERPRINT_MISMATCH");
      expect(error.message).toContain(
        `qemu is "${qemu}" here and "QEMU emulator version 1.0.0" in the descriptor`,
      );
      const other = await rejection(
        (async () => new Parent({ host, profile: { ...profile, memMiB: 64 }, imagePath, descriptor }))(),
      );
      expect(other.code).toBe("FINGERPRINT_MISMATCH");
      expect(other.message).toMatch(/memBytes is "67108864" here/);
    },
    TEST_MS,
  );
});
