/** Encodings that are undone here, by their names in Content-Encoding. */
const formats: Readonly<Record<string, string>> = {
  gzip: "gzip",
  "x-gzip": "gzip",
  deflate: "deflate",
  br: "brotli",
  zstd: "zstd",
};

/**
 * The body that the worker reads. Where an encoding is undone, `headers` lose what would no longer be true of it.
 *
 * @param decodes - false leaves it as it came
 */
export function responseBody(
  source: ReadableStream<Uint8Array> | null,
  headers: Headers,
  decodes: boolean,
): ReadableStream<Uint8Array> | null {
  if (source === null) return null;
  const encodings = (headers.get("content-encoding") ?? "")
    .split(",")
    .map((name) => name.trim().toLowerCase())
    .filter((name) => name !== "" && name !== "identity");
  const known = encodings.map((name) => formats[name]).filter((format) => format !== undefined);
  if (!decodes || encodings.length === 0 || known.length < encodings.length) return collectable(source);
  headers.delete("content-encoding");
  headers.delete("content-length");
  const decoded = known.reduceRight((stream, format) => stream.pipeThrough(decoder(format)), source);
  return collectable(decoded);
}

/** Bun knows more formats than the standard that its types are of. */
function decoder(format: string): ReadableWritablePair<Uint8Array, Uint8Array> {
  return new DecompressionStream(format as CompressionFormat) as ReadableWritablePair<Uint8Array, Uint8Array>;
}

const dropped = new FinalizationRegistry<() => void>((cancel) => cancel());

/**
 * The same stream, cancelled when it is garbage: a worker that looks at the status of an answer and reads no more
 * would hold one of its few requests for ever.
 */
function collectable(source: ReadableStream<Uint8Array>): ReadableStream<Uint8Array> {
  const reader = source.getReader();
  const stream = new ReadableStream<Uint8Array>(
    {
      async pull(controller) {
        const { done, value } = await reader.read();
        if (done) controller.close();
        else controller.enqueue(value);
      },
      cancel: (reason) => reader.cancel(reason),
    },
    { highWaterMark: 0 },
  );
  // Nothing that lives as long as the request refers to `stream`; `reader` does not.
  dropped.register(stream, () => void reader.cancel().catch(() => undefined)); // nobody is there to be told
  return stream;
}
