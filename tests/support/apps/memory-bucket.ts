import { createHash } from "node:crypto";

interface Content {
  text?: string;
  bytes?: Uint8Array;
  contentType?: string;
  cacheControl?: string;
}

interface Conditions {
  etagMatches?: string;
  etagDoesNotMatch?: string;
  uploadedBefore?: Date;
  uploadedAfter?: Date;
}

interface GetOptions {
  onlyIf?: Conditions;
  range?: { offset: number; length: number } | { suffix: number };
}

const uploaded = new Date("2026-01-02T03:04:05Z");

/** As much of Workers' R2 as a file server reads from. */
export class MemoryBucket {
  readonly #files: Map<string, Required<Pick<Content, "bytes">> & Content>;

  constructor(files: Record<string, Content>) {
    const all = Object.entries(files).map(([key, content]) => {
      const bytes = content.bytes ?? new TextEncoder().encode(content.text);
      return [key, { ...content, bytes }] as const;
    });
    this.#files = new Map(all);
  }

  async head(key: string) {
    const file = this.#files.get(key);
    if (!file) return null;
    const etag = createHash("md5").update(file.bytes).digest("hex");
    const { contentType, cacheControl } = file;
    const httpMetadata = { contentType, cacheControl };
    return { key, size: file.bytes.length, etag, httpEtag: `"${etag}"`, uploaded, httpMetadata };
  }

  async get(key: string, options: GetOptions = {}) {
    const head = await this.head(key);
    if (!head) return null;
    const { onlyIf = {}, range } = options;
    const fails =
      (onlyIf.etagMatches && onlyIf.etagMatches !== head.etag) ||
      (onlyIf.etagDoesNotMatch && onlyIf.etagDoesNotMatch === head.etag) ||
      (onlyIf.uploadedBefore && uploaded >= onlyIf.uploadedBefore) ||
      (onlyIf.uploadedAfter && uploaded <= onlyIf.uploadedAfter);
    if (fails) return head;
    const { bytes } = this.#files.get(key)!;
    const part = !range
      ? bytes
      : "suffix" in range
        ? bytes.slice(-range.suffix)
        : bytes.slice(range.offset, range.offset + range.length);
    return { ...head, body: new Response(part as Uint8Array<ArrayBuffer>).body };
  }

  async list({ prefix, delimiter }: { prefix: string; delimiter: string }) {
    const keys = [...this.#files.keys()].filter((key) => key.startsWith(prefix)).sort();
    const deeper = (key: string) => key.indexOf(delimiter, prefix.length);
    const folders = keys.filter((key) => deeper(key) >= 0).map((key) => key.slice(0, deeper(key) + 1));
    const objects = await Promise.all(keys.filter((key) => deeper(key) < 0).map((key) => this.head(key)));
    return { delimitedPrefixes: [...new Set(folders)], objects, truncated: false };
  }
}
