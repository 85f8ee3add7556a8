import { FlurryError } from "../../errors/errors.ts";
import type { Page } from "../api/mod.ts";

/** The items of a list, page by page as they are asked for. */
export async function* itemsOf<T>(
  page: (cursor: string | undefined) => Promise<Page<T>>,
): AsyncGenerator<T, void, undefined> {
  let cursor: string | undefined;
  for (;;) {
    const { items, next }: Page<T> = await page(cursor);
    yield* items;
    if (next === undefined) return;
    if (next === cursor) {
      throw new FlurryError("GATEWAY_FAILED", `The list goes on where it was: cursor "${next}"`);
    }
    cursor = next;
  }
}
