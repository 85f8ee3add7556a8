/** Events to read with `for await`; leaving the loop, or disposing it, ends the subscription. */
export type EventReader<T> = AsyncIterableIterator<T, undefined> & AsyncDisposable;

/**
 * A queue of events that is filled from outside. It holds `capacity`
 * events at most: a reader that falls further behind gets what is held and then a RangeError,
 * rather than a sequence with silent gaps.
 */
export class EventStream<T> implements EventReader<T> {
  readonly #capacity: number;
  readonly #onEnd: () => void;
  #buffer: T[] = [];
  #readers: PromiseWithResolvers<IteratorResult<T, undefined>>[] = [];
  #ended = false;
  #error: unknown;

  constructor(capacity: number, onEnd: () => void) {
    this.#capacity = capacity;
    this.#onEnd = onEnd;
  }

  push(value: T): void {
    if (this.#ended) return;
    const reader = this.#readers.shift();
    if (reader !== undefined) {
      reader.resolve({ value, done: false });
    } else if (this.#buffer.length >= this.#capacity) {
      this.end(new RangeError(`Cannot hold more than ${this.#capacity} unread QMP events`));
    } else {
      this.#buffer.push(value);
    }
  }

  /** No event follows; what is held is still read, then the error (if any) is thrown once. */
  end(error: unknown): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#error = error;
    this.#onEnd();
    const readers = this.#readers;
    this.#readers = [];
    for (const reader of readers) this.#finish(reader);
  }

  next(): Promise<IteratorResult<T, undefined>> {
    const reader = Promise.withResolvers<IteratorResult<T, undefined>>();
    if (this.#buffer.length > 0) reader.resolve({ value: this.#buffer.shift()!, done: false });
    else if (this.#ended) this.#finish(reader);
    else this.#readers.push(reader);
    return reader.promise;
  }

  return(): Promise<IteratorResult<T, undefined>> {
    this.#buffer = [];
    this.end(undefined);
    this.#error = undefined;
    return Promise.resolve({ value: undefined, done: true });
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.return();
  }

  #finish(reader: PromiseWithResolvers<IteratorResult<T, undefined>>): void {
    const error = this.#error;
    this.#error = undefined;
    if (error === undefined) reader.resolve({ value: undefined, done: true });
    else reader.reject(error);
  }
}
