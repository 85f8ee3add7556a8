import type { SetAside } from "../api/mod.ts";
import type { Clock } from "../clock.ts";

/** Failures in a row after which something is set aside. */
const THRESHOLD = 5;
/** First and, if nothing else is said, longest wait before it is tried again, in ms. */
const FIRST_WAIT_MS = 1000;
const LONGEST_WAIT_MS = 300_000;
/** What nobody has asked for so long after its next try is forgotten. */
const FORGET_MS = 3_600_000;

/** What fails with these fails for all families: it is the host. */
const hostCodes: ReadonlySet<string> = new Set([
  "NO_SPACE",
  "STORE_FAILED",
  "QEMU_NOT_FOUND",
  "REQUIREMENT_MISSING",
]);

export type SetAsideChange =
  | { change: "set aside"; entry: SetAside }
  | { change: "restored"; kind: SetAside["kind"]; id: string };

/**
 * One use of a family on the host. How it went is told once: `worked` when a child ran, `failed` when the
 * infrastructure did, `unknown` when it came to neither.
 */
export interface Trial {
  worked(): void;
  failed(code: string, message: string): void;
  unknown(): void;
}

interface Entry {
  kind: SetAside["kind"];
  id: string;
  label: string;
  /** In a row. */
  failures: number;
  reason: string;
  /** Wall clock, for people. */
  since: number;
  /** How long it waits now; 0 while it is in use. */
  waitMs: number;
  /** Monotonic. */
  nextTryAt: number;
  /** One use is trying whether it works again. */
  probing: boolean;
}

/**
 * Sets families and the host aside when they keep failing: five times in a row. After a wait, which doubles
 * from 1 s to 5 min, one use tries whether it works again; a success brings it back.
 */
export class SetAsides {
  readonly #clock: Clock;
  readonly #onChange: (change: SetAsideChange) => void;
  readonly #longestWaitMs: number;
  readonly #host: Entry;
  readonly #families = new Map<string, Entry>();
  /** Families that have failed since the host last worked: the first one, and one more. */
  readonly #failing = new Set<string>();

  constructor(options: {
    clock: Clock;
    host: { id: string; label: string };
    onChange: (change: SetAsideChange) => void;
    /** @default 300000 */
    longestWaitMs?: number | undefined;
  }) {
    this.#clock = options.clock;
    this.#onChange = options.onChange;
    this.#longestWaitMs = options.longestWaitMs ?? LONGEST_WAIT_MS;
    this.#host = this.#fresh("host", options.host.id, options.host.label);
  }

  /** Whether the host is not to be used now. */
  get hostBlocked(): boolean {
    return this.#isBlocked(this.#host);
  }

  /** Whether the next use of the host tries if it works again. */
  get hostIsDue(): boolean {
    return this.#host.waitMs > 0 && !this.hostBlocked;
  }

  /** Families that are not to be used now. */
  blockedFamilies(): string[] {
    return [...this.#families.values()].filter((entry) => this.#isBlocked(entry)).map(({ id }) => id);
  }

  /** Begins to use a family, which is not blocked. */
  begin(family: string, label: string): Trial {
    const asides = [this.#host, this.#families.get(family)].filter((entry) => entry !== undefined);
    const probes = asides.filter((entry) => entry.waitMs > 0 && !entry.probing);
    for (const entry of probes) entry.probing = true;
    let open = true;
    const end = (tell: () => void) => {
      if (!open) return;
      open = false;
      tell();
      for (const entry of probes) entry.probing = false;
    };
    return {
      worked: () =>
        end(() => {
          this.hostWorked();
          this.#worked(this.#families.get(family));
        }),
      failed: (code, message) => end(() => this.#failed({ family, label, code, message, probes })),
      unknown: () => end(() => undefined),
    };
  }

  /** The host cannot go on at all: it is set aside at once, and tried again after `waitMs`. */
  hostFailed(code: string, message: string, waitMs?: number): void {
    this.#host.failures = Math.max(this.#host.failures + 1, THRESHOLD);
    this.#setAside(this.#host, code, message, waitMs);
  }

  hostWorked(): void {
    this.#failing.clear();
    this.#worked(this.#host);
  }

  /** Milliseconds until something may be tried again. */
  nextMs(): number | undefined {
    const now = this.#clock.monotonic();
    this.#forget(now);
    const times = [this.#host, ...this.#families.values()]
      .filter((entry) => entry.nextTryAt > now && !entry.probing)
      .map((entry) => entry.nextTryAt - now);
    return times.length === 0 ? undefined : Math.min(...times);
  }

  /** What has been set aside. */
  list(): SetAside[] {
    return [this.#host, ...this.#families.values()]
      .filter(({ waitMs }) => waitMs > 0)
      .map((entry) => this.#shown(entry));
  }

  #failed(use: { family: string; label: string; code: string; message: string; probes: Entry[] }): void {
    const { family, label, code, message, probes } = use;
    const ofHost = hostCodes.has(code);
    if (!ofHost) {
      const entry = this.#families.get(family) ?? this.#fresh("worker", family, label);
      this.#families.set(family, entry);
      this.#count(entry, code, message, probes.includes(entry));
      // One family that fails says nothing of the host; two may.
      if (this.#failing.size < 2) this.#failing.add(family);
      if (this.#failing.size < 2 && !probes.includes(this.#host)) return;
    }
    this.#count(this.#host, code, message, probes.includes(this.#host));
  }

  #count(entry: Entry, code: string, message: string, probe: boolean): void {
    // What had begun before it was set aside says nothing new.
    if (entry.waitMs > 0 && !probe) return;
    entry.failures += 1;
    if (entry.failures >= THRESHOLD) this.#setAside(entry, code, message);
  }

  #setAside(entry: Entry, code: string, message: string, waitMs?: number): void {
    if (entry.waitMs === 0) entry.since = this.#clock.now();
    const next = entry.waitMs === 0 ? FIRST_WAIT_MS : Math.min(entry.waitMs * 2, this.#longestWaitMs);
    entry.waitMs = waitMs ?? next;
    entry.nextTryAt = this.#clock.monotonic() + entry.waitMs;
    entry.reason = `${code}: ${message}`;
    this.#onChange({ change: "set aside", entry: this.#shown(entry) });
  }

  #worked(entry: Entry | undefined): void {
    if (!entry) return;
    const wasAside = entry.waitMs > 0;
    entry.failures = 0;
    entry.waitMs = 0;
    entry.nextTryAt = 0;
    if (entry.kind === "worker") this.#families.delete(entry.id);
    if (wasAside) this.#onChange({ change: "restored", kind: entry.kind, id: entry.id });
  }

  #isBlocked(entry: Entry): boolean {
    return entry.waitMs > 0 && (entry.probing || entry.nextTryAt > this.#clock.monotonic());
  }

  #forget(now: number): void {
    for (const entry of this.#families.values()) {
      if (!entry.probing && entry.nextTryAt + FORGET_MS < now) this.#worked(entry);
    }
  }

  #fresh(kind: SetAside["kind"], id: string, label: string): Entry {
    const nextTryAt = this.#clock.monotonic();
    return { kind, id, label, failures: 0, reason: "", since: 0, waitMs: 0, nextTryAt, probing: false };
  }

  #shown({ kind, id, label, reason, failures, since, nextTryAt }: Entry): SetAside {
    const now = this.#clock.now();
    const nextTry = now + Math.max(0, nextTryAt - this.#clock.monotonic());
    const [sinceTime, nextTryTime] = [since, nextTry].map((ms) => new Date(ms).toISOString());
    return { kind, id, label, reason, failures, since: sinceTime!, nextTryAt: nextTryTime! };
  }
}
