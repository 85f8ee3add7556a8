import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import {
  CALL_IDS,
  limits,
  MARKER,
  messageTypes,
  PORT_NAME,
  PROTOCOL_VERSION,
  remoteCodes,
  streams,
} from "../../guest-agent/protocol/constants.ts";

const room = fileURLToPath(new URL("../../guest-agent", import.meta.url));
const header = readFileSync(`${room}/init/src/protocol.h`, "utf8");
const text = readFileSync(`${room}/protocol/PROTOCOL.md`, "utf8");

function numbers(prefix: string): Record<string, number> {
  const pattern = new RegExp(`^#define FL_${prefix}(\\w+) (\\d+)$`, "gm");
  return Object.fromEntries([...header.matchAll(pattern)].map(([, name, value]) => [name!, Number(value)]));
}

describe("both ends of the agent channel", () => {
  test("have the same message types", () => {
    expect(numbers("MSG_")).toEqual({ ...messageTypes });
  });

  test("have the same limits", () => {
    expect(header).toContain(`#define FL_CALL_IDS ${CALL_IDS}u`);
    expect(numbers("")).toMatchObject({ ...limits, PROTOCOL_VERSION, MARKER_SIZE: MARKER.length });
  });

  test("have the same streams, error codes, marker and port", () => {
    expect(numbers("STREAM_")).toEqual({ ...streams });
    const codes = [...header.matchAll(/^#define FL_ERR_\w+ "(\w+)"$/gm)].map((match) => match[1]!);
    expect(codes).toEqual([...remoteCodes]);
    const marker = /^#define FL_MARKER (.+)$/m.exec(header)![1]!;
    const bytes = [...marker.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map((m) => m[1]!).join("");
    const decoded = bytes.replace(/\\x([0-9a-f]{2})/g, (_, hex) =>
      String.fromCharCode(Number.parseInt(hex, 16)),
    );
    expect(Buffer.from(decoded.replace("\\n", "\n"), "latin1")).toEqual(Buffer.from(MARKER));
    expect(header).toContain(`#define FL_PORT_NAME "${PORT_NAME}"`);
  });

  test("are described by PROTOCOL.md with the same figures", () => {
    for (const [name, value] of Object.entries(messageTypes))
      expect(text).toMatch(new RegExp(`${name} ${value}\\b`));
    for (const limit of [
      "FRAME_MAX",
      "CHUNK_MAX",
      "WINDOW_TO_HOST",
      "WINDOW_TO_GUEST",
      "OPS_MAX",
      "CALLS_MAX",
      "DEPTH_MAX",
    ] as const)
      expect(text).toContain(String(limits[limit]));
    expect(text).toContain([...MARKER].map((byte) => byte.toString(16).padStart(2, "0")).join(" "));
    for (const code of remoteCodes) expect(text).toContain(`\`${code}\``);
  });
});
