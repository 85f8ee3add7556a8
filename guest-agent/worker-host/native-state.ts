import { toArrayBuffer } from "bun:ffi";
import { readFileSync } from "node:fs";
import { findSqlite, findWebKit } from "./static-state.ts";

/** State of native generators in this process's memory, as arrays over that memory. */
export interface NativeState {
  /**
   * What Linux clears in a process's child (madvise(2), MADV_WIPEONFORK). BoringSSL has a page of that kind:
   * when it finds that cleared, it marks it, and each thread of it seeds itself anew.
   */
  wiped: Uint8Array[];
  /** First word of SQLite's generator; it seeds itself when that is 0. Empty where it has not been used. */
  sqlite: Uint32Array;
  /**
   * Bytes that WebKit's own generator gives until it seeds itself anew. It seeds the `Math.random` of each
   * new global object, such as a thread's. Empty where it was not found.
   */
  webkit: Int32Array;
}

interface Area {
  start: number;
  end: number;
  path: string;
  isWiped: boolean;
}

/** Finds them: that takes longer than to renew them. They have to be used before anything is unmapped. */
export function findNativeState(): NativeState {
  const areas = writableAreas();
  const wiped = areas.filter((area) => area.isWiped).map(bytesOf);
  const statics = staticsOf(areas).map(bytesOf);
  return { wiped, sqlite: findSqlite(statics), webkit: findWebKit(statics) };
}

/** Has native generators seed themselves anew, from the kernel, at the next number that they draw. */
export function staleNativeState({ wiped, sqlite, webkit }: NativeState): void {
  for (const bytes of wiped) bytes.fill(0);
  sqlite.fill(0);
  webkit.fill(0);
}

/** Whether BoringSSL has noticed. */
export function hasNoticed({ wiped }: NativeState): boolean {
  for (const bytes of wiped) if (bytes[0] !== 0) return true;
  return false;
}

function writableAreas(): Area[] {
  const text = readFileSync("/proc/self/smaps", "latin1");
  return text.split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m).flatMap((area) => {
    const range = /^([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ \S+ *(.*)$/m.exec(area);
    if (!range) return [];
    const [, start, end, path] = range as unknown as [string, string, string, string];
    const isWiped = /^VmFlags:.* wf\b/m.test(area);
    return { start: Number.parseInt(start, 16), end: Number.parseInt(end, 16), path, isWiped };
  });
}

/** Where this program's static variables are: what is loaded of its file, and the zeroed memory behind. */
function staticsOf(areas: readonly Area[]): Area[] {
  const program = areas.filter(({ path }) => path === process.execPath);
  const end = program.at(-1)?.end;
  return [...program, ...areas.filter(({ start, path }) => path === "" && start === end)];
}

function bytesOf({ start, end }: Area): Uint8Array {
  return new Uint8Array(toArrayBuffer(start as never, 0, end - start));
}
