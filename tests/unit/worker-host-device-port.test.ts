import { expect, test } from "bun:test";
import { execFileSync } from "node:child_process";
import { closeSync, constants, mkdtempSync, openSync, read, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { DevicePort } from "../../guest-agent/worker-host/device-port.ts";

/**
 * A pair of pipes reads as a virtio-serial port does: a read waits while the other end is open and has
 * sent nothing, and gives 0 bytes while it is not.
 */
function pipes() {
  const directory = mkdtempSync(join(tmpdir(), "flurry-port-"));
  const [toGuest, toHost] = [join(directory, "in"), join(directory, "out")] as const;
  execFileSync("mkfifo", [toGuest, toHost]);
  // Opening one end waits for the other one; an end that is both does not.
  const [holdIn, holdOut] = [
    openSync(toGuest, constants.O_RDWR),
    openSync(toHost, constants.O_RDWR),
  ] as const;
  const input = openSync(toGuest, constants.O_RDONLY);
  const output = openSync(toHost, constants.O_WRONLY);
  const readEnd = openSync(toHost, constants.O_RDONLY);
  let writeEnd: number | undefined = openSync(toGuest, constants.O_WRONLY);
  closeSync(holdIn);
  closeSync(holdOut);
  return {
    port: new DevicePort(input, output),
    connect: () => {
      writeEnd ??= openSync(toGuest, constants.O_WRONLY);
    },
    say: (text: string) => writeSync(writeEnd!, text),
    hangUp: () => {
      if (writeEnd !== undefined) closeSync(writeEnd);
      writeEnd = undefined;
    },
    read: async (bytes: number) => {
      const { bytesRead, buffer } = await promisify(read)(readEnd, new Uint8Array(bytes), 0, bytes, null);
      return Buffer.from(buffer.subarray(0, bytesRead)).toString();
    },
    [Symbol.asyncDispose]: async () => {
      if (writeEnd !== undefined) closeSync(writeEnd);
      closeSync(readEnd);
      rmSync(directory, { recursive: true, force: true });
    },
  };
}

function onFailed(error: unknown): void {
  throw error;
}

async function until(check: () => boolean): Promise<void> {
  for (const end = performance.now() + 5000; !check(); await Bun.sleep(2))
    if (performance.now() > end) throw new Error(`Not within 5 s: ${check}`);
}

test("DevicePort reads what hosts send, one after the other, and does not spin between them", async () => {
  await using pair = pipes();
  await using port = pair.port;
  let text = "";
  let hangUps = 0;
  port.start({
    onFailed,
    onBytes: (bytes) => {
      text += Buffer.from(bytes).toString();
      return undefined;
    },
    onHangup: () => {
      hangUps++;
    },
  });
  pair.say("one");
  await until(() => text === "one");
  await Bun.sleep(30); // a silent host is no hang-up
  expect(hangUps).toBe(0);
  pair.hangUp();
  await until(() => hangUps === 1);
  const before = process.cpuUsage();
  await Bun.sleep(300);
  const { user, system } = process.cpuUsage(before);
  expect(hangUps).toBe(1);
  expect((user + system) / 300_000).toBeLessThan(0.3);
  pair.connect();
  pair.say("two");
  await until(() => text === "onetwo");
  pair.hangUp();
  await until(() => hangUps === 2);
});

test("DevicePort waits with the next read until what it gave has been taken", async () => {
  await using pair = pipes();
  await using port = pair.port;
  const parts: string[] = [];
  const taken = Promise.withResolvers<void>();
  port.start({
    onFailed,
    onBytes: (bytes) => {
      parts.push(Buffer.from(bytes).toString());
      return parts.length === 1 ? taken.promise : undefined;
    },
    onHangup: () => undefined,
  });
  pair.say("a");
  await until(() => parts.length === 1);
  pair.say("b");
  await Bun.sleep(20);
  pair.say("c");
  expect(parts).toEqual(["a"]);
  taken.resolve();
  await until(() => parts.join("") === "abc");
  pair.hangUp();
});

test("DevicePort writes all, however little the other end takes at once", async () => {
  await using pair = pipes();
  await using port = pair.port;
  const sent = "0123456789".repeat(20_000);
  const writing = port.write(Buffer.from(sent));
  let text = "";
  while (text.length < sent.length) {
    text += await pair.read(10_000);
  }
  await writing;
  expect(text).toBe(sent);
});

test("DevicePort drops what a host that went has not taken, and never mixes it with what the next one gets", async () => {
  await using pair = pipes();
  await using port = pair.port;
  const stale = port.write(Buffer.from("o".repeat(300_000)));
  await Bun.sleep(20); // the pipe is full now, and the write waits
  port.forget();
  const fresh = port.write(Buffer.from("n".repeat(100_000)));
  let text = "";
  while (!text.endsWith("n") || text.length - text.indexOf("n") < 100_000) {
    text += await pair.read(50_000);
  }
  await stale;
  await fresh;
  expect(text.slice(text.indexOf("n"))).toBe("n".repeat(100_000));
  expect(text.indexOf("n")).toBeLessThan(300_000);
});
