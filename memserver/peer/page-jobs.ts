import { ENTRY_BYTES } from "../image/page-table.ts";
import { PAGE_BYTES } from "../stream/format.ts";
import { encodeAnswer, PAGES_HEAD_BYTES, type PeerAnswer, pagesFrame } from "./messages.ts";
import type { ServedImage } from "./served-image.ts";
import { compress } from "./zstd.ts";

/** Pages of one PAGES frame: what is urgent waits for no more than one of them to be read and compressed. */
const SLICE_PAGES = 32;

/** An answer that is made frame by frame, each when there is room for it. */
export interface AnswerJob {
  readonly id: number;
  /** @param compress - whether to try */
  next(compress: boolean): AnswerFrame;
}

export interface AnswerFrame {
  frame: Buffer;
  /** Whether the answer is complete with it. */
  last: boolean;
  /** Pages in it. */
  pages?: number;
  compressed?: boolean;
}

/** An answer that is known. */
export function answerJob(answer: PeerAnswer): AnswerJob {
  return { id: answer.id, next: () => ({ frame: encodeAnswer(answer), last: true }) };
}

/** Answers a READ whose range is in the image. */
export class ReadJob implements AnswerJob {
  readonly id: number;
  readonly #image: ServedImage;
  readonly #end: number;
  #next: number;

  constructor(id: number, image: ServedImage, first: number, count: number) {
    this.id = id;
    this.#image = image;
    this.#next = first;
    this.#end = first + count;
  }

  next(compressing: boolean): AnswerFrame {
    const { id } = this;
    const first = this.#next;
    const count = Math.min(SLICE_PAGES, this.#end - first);
    const whole = readPresent(this.#image, first, count);
    if (!whole) return { frame: encodeAnswer({ kind: "missing", id }), last: true };
    this.#next += count;
    const bytes = whole.subarray(PAGES_HEAD_BYTES);
    const told = { last: this.#next === this.#end, pages: bytes.length / PAGE_BYTES };
    const packed = compressing ? compress(bytes) : undefined;
    if (!packed) return { frame: pagesFrame(whole, id, first, count, "raw"), ...told };
    const frame = encodeAnswer({ kind: "pages", id, first, count, encoding: "zstd", bytes: packed });
    return { frame, ...told, compressed: true };
  }
}

/** The pages of a range that are not zero, behind room for the head of a PAGES frame. */
function readPresent(image: ServedImage, first: number, count: number): Buffer | undefined {
  const { table } = image;
  const end = first + count;
  const target = Buffer.allocUnsafe(PAGES_HEAD_BYTES + count * PAGE_BYTES);
  let at = PAGES_HEAD_BYTES;
  for (let page = first; page < end; ) {
    if (table.isZero(page)) {
      page += 1;
      continue;
    }
    let run = 1;
    while (page + run < end && !table.isZero(page + run)) run += 1;
    if (!image.read(page, run, target, at)) return undefined;
    page += run;
    at += run * PAGE_BYTES;
  }
  return target.subarray(0, at);
}

/** Answers a TABLE whose range is in the image. */
export function tableJob(id: number, image: ServedImage, first: number, count: number): AnswerJob {
  const entries = image.table.bytes.subarray(first * ENTRY_BYTES, (first + count) * ENTRY_BYTES);
  return answerJob({ kind: "table", id, first, entries });
}
