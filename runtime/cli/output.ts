/** A stream that text is written to, as process.stdout. */
export interface TextSink {
  write(text: string): unknown;
  isTTY?: boolean;
  columns?: number;
}

export interface OutputOptions {
  /** One JSON object a line on `out` instead of text. @default false */
  json?: boolean;
  /** Results. @default process.stdout */
  out?: TextSink;
  /** Progress and remarks. @default process.stderr */
  err?: TextSink;
}

/** How far a piece of work has come. Disposing ends it where it stands. */
export interface Progress extends Disposable {
  /** Moves forward by `steps` and, if given, says what is being done now. */
  advance(steps?: number, detail?: string): void;
  /** Says what is being done now, without moving forward. */
  describe(detail: string): void;
  /** Ends the progress; `summary` replaces it. */
  finish(summary?: string): void;
}

/**
 * What a command shows: results on stdout, progress and remarks on stderr. With `json`, results and
 * progress are JSON lines on stdout and the text is left out.
 */
export class Output {
  readonly json: boolean;
  readonly #out: TextSink;
  readonly #err: TextSink;
  #live: LiveLine | undefined;

  constructor(options: OutputOptions = {}) {
    this.json = options.json ?? false;
    this.#out = options.out ?? process.stdout;
    this.#err = options.err ?? process.stderr;
  }

  /** Writes lines of a result as text; nothing with `json`. */
  print(text: string): void {
    if (!this.json) this.#between(() => this.#out.write(`${text}\n`));
  }

  /** Writes a remark on stderr; nothing with `json`. */
  note(text: string): void {
    if (!this.json) this.#between(() => this.#err.write(`${text}\n`));
  }

  /** Writes one JSON line on stdout; nothing without `json`. */
  emit(event: object): void {
    if (this.json) this.#out.write(`${JSON.stringify(event)}\n`);
  }

  /**
   * Starts a progress display: one line redrawn on a terminal; else a plain line at the start, at
   * each quarter and at the end; with `json`, events `{event: "progress", label, done, total, detail}`.
   *
   * @param total number of steps; 0 where it is unknown
   */
  progress(label: string, total = 0): Progress {
    if (this.json) return new JsonProgress(this, label, total);
    if (this.#err.isTTY !== true) return new PlainProgress((text) => this.note(text), label, total);
    this.#live?.finish();
    const live = new LiveLine(this.#err, label, total, () => {
      if (this.#live === live) this.#live = undefined;
    });
    this.#live = live;
    return live;
  }

  #between(write: () => void): void {
    this.#live?.clear();
    write();
    this.#live?.draw();
  }
}

class JsonProgress implements Progress {
  readonly #output: Output;
  readonly #label: string;
  readonly #total: number;
  #done = 0;
  #ended = false;

  constructor(output: Output, label: string, total: number) {
    this.#output = output;
    this.#label = label;
    this.#total = total;
    this.#emit({});
  }

  advance(steps = 1, detail?: string): void {
    this.#done += steps;
    this.#emit(detail === undefined ? {} : { detail });
  }

  describe(detail: string): void {
    this.#emit({ detail });
  }

  finish(summary?: string): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#emit(summary === undefined ? { ended: true } : { ended: true, detail: summary });
  }

  [Symbol.dispose](): void {
    this.finish();
  }

  #emit(more: object): void {
    const total = this.#total > 0 ? { total: this.#total } : {};
    this.#output.emit({ event: "progress", label: this.#label, done: this.#done, ...total, ...more });
  }
}

class PlainProgress implements Progress {
  readonly #write: (text: string) => void;
  readonly #label: string;
  readonly #total: number;
  #done = 0;
  #quarter = 0;
  #ended = false;

  constructor(write: (text: string) => void, label: string, total: number) {
    this.#write = write;
    this.#label = label;
    this.#total = total;
    write(`${label} ...`);
  }

  advance(steps = 1): void {
    this.#done += steps;
    if (this.#total <= 0) return;
    const quarter = Math.floor((4 * this.#done) / this.#total);
    if (quarter > this.#quarter && quarter < 4) this.#write(`${this.#label}: ${this.#done}/${this.#total}`);
    this.#quarter = quarter;
  }

  describe(detail: string): void {
    this.#write(`${this.#label}: ${detail}`);
  }

  finish(summary?: string): void {
    if (this.#ended) return;
    this.#ended = true;
    if (summary !== undefined) this.#write(summary);
  }

  [Symbol.dispose](): void {
    this.finish();
  }
}

const TICK_MS = 1000;

/** One line on a terminal, redrawn in place. */
class LiveLine implements Progress {
  readonly #sink: TextSink;
  readonly #label: string;
  readonly #total: number;
  readonly #onEnd: () => void;
  #done = 0;
  #detail = "";
  #ended = false;
  readonly #began = performance.now();
  readonly #ticking: ReturnType<typeof setInterval>;

  constructor(sink: TextSink, label: string, total: number, onEnd: () => void) {
    this.#sink = sink;
    this.#label = label;
    this.#total = total;
    this.#onEnd = onEnd;
    // A boot may be silent for seconds: the passing time shows that it goes on.
    this.#ticking = setInterval(() => this.draw(), TICK_MS);
    this.#ticking.unref();
    this.draw();
  }

  advance(steps = 1, detail?: string): void {
    this.#done += steps;
    if (detail !== undefined) this.#detail = detail;
    this.draw();
  }

  describe(detail: string): void {
    this.#detail = detail;
    this.draw();
  }

  finish(summary?: string): void {
    if (this.#ended) return;
    clearInterval(this.#ticking);
    this.clear();
    this.#ended = true;
    if (summary !== undefined) this.#sink.write(`${summary}\n`);
    this.#onEnd();
  }

  clear(): void {
    if (!this.#ended) this.#sink.write("\r\u001b[K");
  }

  draw(): void {
    if (this.#ended) return;
    const bar = this.#total > 0 ? ` ${drawBar(this.#done / this.#total)} ${this.#done}/${this.#total}` : "";
    const seconds = Math.floor((performance.now() - this.#began) / TICK_MS);
    const time = seconds > 0 ? ` ${seconds} s` : "";
    const detail = this.#detail === "" ? "" : ` ${this.#detail}`;
    const width = Math.max(20, (this.#sink.columns || 80) - 1);
    this.#sink.write(`\r\u001b[K${`${this.#label}${bar}${time}${detail}`.slice(0, width)}`);
  }

  [Symbol.dispose](): void {
    this.finish();
  }
}

function drawBar(fraction: number): string {
  const width = 20;
  const full = Math.min(width, Math.max(0, Math.round(fraction * width)));
  return `${"█".repeat(full)}${"░".repeat(width - full)}`;
}
