import { constants } from "node:os";

const byName = new Map<string, number>(Object.entries(constants.signals));
const byNumber = new Map<number, string>([...byName].reverse().map(([name, number]) => [number, name]));

/** The number of a signal's name; undefined if there is none. */
export function signalNumber(signal: string | number): number | undefined {
  return typeof signal === "number" ? signal : byName.get(signal);
}

/** `SIGKILL` for 9; `SIG40` for what has no name. Host and guest both are Linux. */
export function signalName(number: number): string {
  return byNumber.get(number) ?? `SIG${number}`;
}
