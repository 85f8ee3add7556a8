import type { ControlAnswer, ControlRequest } from "./control.ts";

/** Other memservers, as far as a runtime asks for them. */
export interface Peers {
  find(key: string, holders: readonly string[]): Promise<ControlAnswer<"find">>;
  listen(request: Extract<ControlRequest, { op: "listen" }>): Promise<number>;
}
