import { describe, expect, test } from "bun:test";
import { SingleFlight } from "../../runtime/workers/single-flight.ts";
import { rejection } from "../support/agent-peer.ts";

/** Work that ends when it is told to, or when it is aborted. */
function controlled() {
  const begun: { signal: AbortSignal; finish: () => void; fail: (error: Error) => void }[] = [];
  let cleanedUp = 0;
  const work = (signal: AbortSignal) =>
    new Promise<void>((resolve, reject) => {
      begun.push({ signal, finish: resolve, fail: reject });
      signal.addEventListener("abort", () =>
        setImmediate(() => {
          cleanedUp += 1;
          reject(new Error("ended"));
        }),
      );
    });
  return { begun, work, cleanedUp: () => cleanedUp };
}

const never = new AbortController().signal;

describe("SingleFlight", () => {
  test("does the work once for all who ask at the same time, and again for who comes later", async () => {
    await using shared = new SingleFlight();
    const { begun, work } = controlled();
    const all = [1, 2, 3].map(() => shared.join("a", work, never));
    const other = shared.join("b", work, never);
    expect(begun).toHaveLength(2);
    begun[0]!.finish();
    await Promise.all(all);
    const later = shared.join("a", work, never);
    expect(begun).toHaveLength(3);
    for (const { finish } of begun) finish();
    await Promise.all([later, other]);
  });

  test("gives every caller the error, and the next one a new try", async () => {
    await using shared = new SingleFlight();
    const { begun, work } = controlled();
    const both = [1, 2].map(() => rejection(shared.join("a", work, never)));
    begun[0]!.fail(new Error("no disk"));
    expect((await Promise.all(both)).map(({ message }) => message)).toEqual(["no disk", "no disk"]);
    const again = shared.join("a", work, never);
    begun[1]!.finish();
    await again;
  });

  test("leaves the others alone when one caller is aborted", async () => {
    await using shared = new SingleFlight();
    const { begun, work } = controlled();
    const impatience = new AbortController();
    const leaving = rejection(shared.join("a", work, impatience.signal));
    const staying = shared.join("a", work, never);
    impatience.abort();
    expect((await leaving).code).toBe("ABORTED");
    expect(begun[0]!.signal.aborted).toBe(false);
    begun[0]!.finish();
    await staying;
  });

  test("ends with the last caller, who waits for that, and whoever comes then begins anew", async () => {
    await using shared = new SingleFlight();
    const { begun, work, cleanedUp } = controlled();
    const abort = new AbortController();
    const both = [1, 2].map(() => rejection(shared.join("a", work, abort.signal)));
    abort.abort();
    await new Promise<void>((resolve) => queueMicrotask(resolve));
    const next = shared.join("a", work, never);
    expect((await Promise.all(both)).map(({ code }) => code)).toEqual(["ABORTED", "ABORTED"]);
    expect(cleanedUp()).toBe(1);
    expect(begun).toHaveLength(2);
    expect(begun[1]!.signal.aborted).toBe(false);
    begun[1]!.finish();
    await next;
  });

  test("begins nothing for a caller who is aborted already", async () => {
    await using shared = new SingleFlight();
    const { begun, work } = controlled();
    expect((await rejection(shared.join("a", work, AbortSignal.abort()))).code).toBe("ABORTED");
    expect(begun).toEqual([]);
  });

  test("ends all work when it is disposed, and waits for it", async () => {
    const shared = new SingleFlight();
    const { work, cleanedUp } = controlled();
    const all = ["a", "b"].map((key) => rejection(shared.join(key, work, never)));
    await shared[Symbol.asyncDispose]();
    expect(cleanedUp()).toBe(2);
    await Promise.all(all);
    expect((await rejection(shared.join("a", work, never))).code).toBe("ABORTED");
  });
});
