import { once } from "node:events";
import { connect } from "node:net";

export type HeaderLines = [name: string, value: string][];

/** A request as it goes over the wire: no header is added but `Content-Length`, nor changed. */
export interface WireRequest {
  method: string;
  /** What stands in the first line, as it is. */
  target: string;
  headers: HeaderLines;
  body?: Uint8Array | string | undefined;
}

/** An answer as it came over the wire. */
export interface WireAnswer {
  status: number;
  headers: HeaderLines;
  body: Buffer;
  /** Whether its body was sent in chunks. */
  isChunked: boolean;
}

/** Asks a server in HTTP/1.1, by a connection of its own, and without a library between. */
export async function exchange(port: number, request: WireRequest, ms = 30_000): Promise<WireAnswer> {
  const { method, target, body } = request;
  const bytes = Buffer.from(body ?? "");
  const headers = [...request.headers];
  if (body !== undefined) headers.push(["Content-Length", String(bytes.length)]);
  const head = [`${method} ${target} HTTP/1.1`, ...headers.map(([name, value]) => `${name}: ${value}`)];
  const socket = connect(port, "127.0.0.1");
  const late = setTimeout(
    () => socket.destroy(new Error(`No answer to ${method} ${target} in ${ms} ms`)),
    ms,
  );
  try {
    await once(socket, "connect");
    socket.write(Buffer.concat([Buffer.from(`${head.join("\r\n")}\r\n\r\n`, "latin1"), bytes]));
    let received = Buffer.alloc(0);
    for await (const chunk of socket) {
      received = Buffer.concat([received, chunk]);
      const answer = parsed(received, method);
      if (answer) return answer;
    }
    throw new Error(`The answer to ${method} ${target} breaks off after ${received.length} bytes`);
  } finally {
    clearTimeout(late);
    socket.destroy();
  }
}

/** The answer, when all of it is there. */
function parsed(received: Buffer, method: string): WireAnswer | undefined {
  const end = received.indexOf("\r\n\r\n");
  if (end < 0) return undefined;
  const [first = "", ...lines] = received.toString("latin1", 0, end).split("\r\n");
  const status = Number(/^HTTP\/1\.1 (\d{3}) /.exec(first)?.[1]);
  if (!status) throw new Error(`This is no HTTP answer: ${first}`);
  const headers = lines.map((line): [string, string] => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim()];
  });
  const rest = received.subarray(end + 4);
  const fieldOf = (name: string) => headers.find((header) => header[0] === name)?.[1];
  const isChunked = fieldOf("transfer-encoding") === "chunked";
  const isBodiless = method === "HEAD" || status === 204 || status === 304;
  const body = isBodiless
    ? Buffer.alloc(0)
    : isChunked
      ? unchunked(rest)
      : exactly(rest, Number(fieldOf("content-length")));
  return body && { status, headers, body, isChunked };
}

function exactly(bytes: Buffer, length: number): Buffer | undefined {
  if (!Number.isInteger(length)) throw new Error("The answer has a body without a length");
  return bytes.length < length ? undefined : bytes.subarray(0, length);
}

function unchunked(bytes: Buffer): Buffer | undefined {
  const parts: Buffer[] = [];
  for (let at = 0; ; ) {
    const line = bytes.indexOf("\r\n", at);
    if (line < 0) return undefined;
    const size = Number.parseInt(bytes.toString("latin1", at, line), 16);
    if (bytes.length < line + 2 + size + 2) return undefined;
    if (size === 0) return Buffer.concat(parts);
    parts.push(bytes.subarray(line + 2, line + 2 + size));
    at = line + 2 + size + 2;
  }
}
