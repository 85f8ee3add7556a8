import type { Holder } from "../../memserver/image/holders.ts";
import type { FetchOptions } from "../../memserver/image/page-source.ts";
import type { MadeUpImage } from "./memserver-peers.ts";

export interface HolderRequest {
  first: number;
  count: number;
  urgent: boolean;
}

export type HolderAnswer = (request: HolderRequest, signal: AbortSignal) => unknown;

/** A holder that answers as the test wants, and remembers what it was asked. */
export class ScriptedHolder implements Holder {
  readonly name: string;
  readonly requests: HolderRequest[] = [];
  /** What it answers to: the pages of its image, unless the test changes that. */
  answer: HolderAnswer;

  constructor(name: string, image: MadeUpImage, answer?: HolderAnswer) {
    this.name = name;
    this.answer = answer ?? (({ first, count }) => image.range(first, count));
  }

  async read(first: number, count: number, options: FetchOptions): Promise<Buffer | undefined> {
    const request = { first, count, urgent: options.urgent === true };
    this.requests.push(request);
    return (await this.answer(request, options.signal!)) as Buffer | undefined;
  }

  /** Pages that it was asked for and that are not zero, in the order in which it was. */
  asked(image: MadeUpImage): number[] {
    return this.requests.flatMap(({ first, count }) =>
      Array.from({ length: count }, (_value, at) => first + at).filter((page) => !image.table.isZero(page)),
    );
  }
}

/** Holds answers back until the test lets them go. */
export class Gate {
  #open = Promise.withResolvers<void>();

  open(): void {
    this.#open.resolve();
  }

  get opened(): Promise<void> {
    return this.#open.promise;
  }
}
