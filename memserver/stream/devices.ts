import {
  COMMAND_BYTES,
  command,
  endsWithFooter,
  FOOTER_BYTES,
  invalid,
  MAX_DESCRIPTION_BYTES,
  type PackagedItem,
  readName,
  type StreamItem,
  section,
} from "./format.ts";

// FULL sections carry no length, and what is in them is known to QEMU's devices only. Where they end
// follows from what comes after the last one, read from the end.

const EOF_AND_DESCRIPTION = Buffer.from([section.eof, section.description]);
const EMPTY_COMMAND = 0;
const PING_BYTES = COMMAND_BYTES + 4;

/**
 * Takes apart what follows the RAM section in a precopy stream: FULL sections, EOF and, as a rule, a
 * description.
 *
 * @param at - offset of the first byte
 */
export function splitTail(bytes: Buffer, at: number): StreamItem[] {
  const end = descriptionStart(bytes) ?? bytes.length - 1;
  if (bytes[end] !== section.eof) throw invalid(at + bytes.length, "stream ends in the device state");
  const items: StreamItem[] = [devices(bytes, 0, end, at), { kind: "eof", at: at + end }];
  if (end < bytes.length - 1) {
    items.push({ kind: "description", at: at + end + 1, bytes: bytes.subarray(end + 6) });
  }
  return items;
}

/** Where the EOF is that a description follows up to the end: a JSON object, so without any NUL. */
function descriptionStart(bytes: Buffer): number | undefined {
  const first = Math.max(0, bytes.length - MAX_DESCRIPTION_BYTES - 6);
  for (let eof = bytes.indexOf(EOF_AND_DESCRIPTION, first); eof >= 0; ) {
    const text = eof + 6;
    const fits = text < bytes.length && bytes.readUInt32BE(eof + 2) === bytes.length - text;
    if (fits && isDescription(bytes.subarray(text))) return eof;
    eof = bytes.indexOf(EOF_AND_DESCRIPTION, eof + 1);
  }
  return undefined;
}

/** Whether it looks like a JSON object; what is in it is never needed. */
export function isDescription(text: Buffer): boolean {
  return text[0] === 0x7b && text.at(-1) === 0x7d && !text.includes(0);
}

/** Takes a package apart: LISTEN, FULL sections, as a rule a PING, RUN. */
export function splitPackage(bytes: Buffer, at: number): PackagedItem[] {
  const run = bytes.length - COMMAND_BYTES;
  if (run < COMMAND_BYTES) throw invalid(at, `package of only ${bytes.length} bytes`);
  if (!isCommand(bytes, 0, command.listen, EMPTY_COMMAND)) throw invalid(at, "package without LISTEN");
  if (!isCommand(bytes, run, command.run, EMPTY_COMMAND)) throw invalid(at + run, "package without RUN");
  const ping = run - PING_BYTES;
  const hasPing =
    ping > COMMAND_BYTES && isCommand(bytes, ping, command.ping, 4) && endsWithFooter(bytes, ping);
  const items: PackagedItem[] = [
    { kind: "listen", at },
    devices(bytes, COMMAND_BYTES, hasPing ? ping : run, at + COMMAND_BYTES),
  ];
  if (hasPing) items.push({ kind: "ping", at: at + ping, value: bytes.readUInt32BE(run - 4) });
  items.push({ kind: "run", at: at + run });
  return items;
}

function isCommand(bytes: Buffer, start: number, code: number, length: number): boolean {
  return (
    bytes[start] === section.command &&
    bytes.readUInt16BE(start + 1) === code &&
    bytes.readUInt16BE(start + 3) === length
  );
}

function devices(bytes: Buffer, start: number, end: number, at: number): PackagedItem {
  const nameLength = bytes[start + 5] ?? 0;
  // Type, id, name, instance, version, footer.
  const least = 1 + 4 + 1 + nameLength + 8 + FOOTER_BYTES;
  if (bytes[start] !== section.full || end - start < least) throw invalid(at, "no device state");
  readName(bytes, start + 6, nameLength, at);
  if (!endsWithFooter(bytes, end)) throw invalid(at + end - start, "device state ends without a footer");
  return { kind: "devices", at, bytes: bytes.subarray(start, end) };
}
