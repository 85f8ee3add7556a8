import { splitLines } from "./lines.ts";

/** An event of a stream of server-sent events. */
export interface ServerSentEvent {
  /** "message" when the stream names no other. */
  event: string;
  data: string;
  /** Last id of the stream so far. */
  id: string;
}

/**
 * Reads an event stream (HTML, 9.2.6). An event that is not complete at the end is dropped, and so are
 * events without data, comments and unknown fields.
 */
export async function* parseEvents(
  source: AsyncIterable<Uint8Array>,
): AsyncGenerator<ServerSentEvent, void, undefined> {
  let id = "";
  let event = "";
  let data: string[] = [];
  for await (const line of splitLines(source, "any")) {
    if (line === "") {
      if (data.length > 0) yield { event: event === "" ? "message" : event, data: data.join("\n"), id };
      event = "";
      data = [];
      continue;
    }
    const colon = line.indexOf(":");
    const field = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") data.push(value);
    else if (field === "event") event = value;
    else if (field === "id" && !value.includes("\0")) id = value;
  }
}
