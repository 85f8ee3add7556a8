/** QEMU's version as its greeting gives it. */
export interface QmpVersion {
  qemu: { major: number; minor: number; micro: number };
  /** The distributor's package string, empty for a build from source. */
  package: string;
}

/** What QEMU says first (QMP specification, "Server Greeting"). */
export interface QmpGreeting {
  version: QmpVersion;
  capabilities: string[];
}

/** An event as it came over the wire. */
export interface QmpRawEvent {
  event: string;
  data?: unknown;
  /** Host time; both are -1 where the host's clock could not be read. */
  timestamp: { seconds: number; microseconds: number };
}

export type QmpMessage =
  | { kind: "greeting"; greeting: QmpGreeting }
  | { kind: "event"; event: QmpRawEvent }
  | { kind: "return"; id: unknown; value: unknown }
  | { kind: "error"; id: unknown; qmpClass: string; description: string };

/**
 * Reads one line of the server. QEMU sends one object a line; the specification does not promise
 * that, so several on one line are taken as well.
 *
 * @throws SyntaxError when the line holds anything but QMP messages.
 */
export function parseLine(line: string): QmpMessage[] {
  if (line.trim() === "") return [];
  let value: unknown;
  try {
    value = JSON.parse(line);
  } catch (error) {
    const texts = splitObjects(line);
    if (texts.length < 2) throw malformed(line, error);
    return texts.map((text) => classify(parseJson(text), text));
  }
  return [classify(value, line)];
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw malformed(text, error);
  }
}

/** Cuts `{...}{...}` at the top level; what is left over after the last brace is a piece of its own. */
function splitObjects(line: string): string[] {
  const texts: string[] = [];
  let depth = 0;
  let start = 0;
  let inString = false;
  for (let i = 0; i < line.length; i++) {
    const char = line[i];
    if (inString) {
      if (char === "\\") i++;
      else if (char === '"') inString = false;
    } else if (char === '"') {
      inString = true;
    } else if (char === "{") {
      depth++;
    } else if (char === "}" && --depth === 0) {
      texts.push(line.slice(start, i + 1));
      start = i + 1;
    }
  }
  const rest = line.slice(start);
  if (rest.trim() !== "") texts.push(rest);
  return texts;
}

function classify(value: unknown, text: string): QmpMessage {
  if (!isRecord(value)) throw malformed(text);
  if (isEvent(value)) return { kind: "event", event: value };
  if ("error" in value) {
    const { error } = value;
    if (!isRecord(error) || typeof error.class !== "string" || typeof error.desc !== "string") {
      throw malformed(text);
    }
    return { kind: "error", id: value.id, qmpClass: error.class, description: error.desc };
  }
  if ("return" in value) return { kind: "return", id: value.id, value: value.return };
  if (isGreeting(value.QMP)) return { kind: "greeting", greeting: value.QMP };
  throw malformed(text);
}

function isEvent(value: Record<string, unknown>): value is Record<string, unknown> & QmpRawEvent {
  return (
    typeof value.event === "string" &&
    isRecord(value.timestamp) &&
    typeof value.timestamp.seconds === "number" &&
    typeof value.timestamp.microseconds === "number"
  );
}

function isGreeting(value: unknown): value is QmpGreeting {
  if (!isRecord(value) || !isRecord(value.version) || !isRecord(value.version.qemu)) return false;
  const { major, minor, micro } = value.version.qemu;
  return (
    typeof major === "number" &&
    typeof minor === "number" &&
    typeof micro === "number" &&
    typeof value.version.package === "string" &&
    Array.isArray(value.capabilities) &&
    value.capabilities.every((capability) => typeof capability === "string")
  );
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function malformed(text: string, cause?: unknown): SyntaxError {
  const excerpt = text.length > 80 ? `${text.slice(0, 80)}...` : text;
  return new SyntaxError(
    `Not a QMP message: ${JSON.stringify(excerpt)}`,
    cause === undefined ? undefined : { cause },
  );
}
