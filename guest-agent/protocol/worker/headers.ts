import { Buffer } from "node:buffer";
import { workerLimits } from "./constants.ts";

/** A head's fields in their order: a repeated one is there as often as it was sent. */
export type HeaderList = readonly (readonly [name: string, value: string])[];

/** RFC 9110, 5.6.2: what names and methods consist of. */
const token = /^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$/;
/** RFC 9110, 5.5: one character for each byte. CR, LF and NUL would end the field. */
const fieldValue = /^[\t\x20-\x7e\x80-\xff]*$/;

export function isToken(text: string): boolean {
  return token.test(text);
}

/** Why these headers cannot be sent, or undefined. */
export function headersProblem(headers: HeaderList): string | undefined {
  if (headers.length > workerLimits.HEADERS_MAX) {
    return `${headers.length} headers, at most ${workerLimits.HEADERS_MAX} are allowed`;
  }
  let bytes = 0;
  for (const [name, value] of headers) {
    bytes += Buffer.byteLength(name) + Buffer.byteLength(value);
    if (!token.test(name)) return `the header name ${JSON.stringify(name.slice(0, 80))}`;
    if (!fieldValue.test(value)) return `a bad value of the header "${name.slice(0, 80)}"`;
  }
  if (bytes > workerLimits.HEADER_BYTES_MAX) {
    return `headers of ${bytes} bytes, at most ${workerLimits.HEADER_BYTES_MAX} are allowed`;
  }
  return undefined;
}
