import { SignedReceipt } from "../api/mod.ts";
import type { CallOptions } from "./jobs.ts";
import type { Transport } from "./transport.ts";

/** VMs of a gateway. */
export class VmsApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /**
   * What a VM has proven about its identity, signed by the gateway.
   *
   * @throws FlurryError RECEIPT_NOT_FOUND
   */
  receipt(id: string, { signal }: CallOptions = {}): Promise<SignedReceipt> {
    return this.#transport.json(`/v1/vms/${encodeURIComponent(id)}/receipt`, SignedReceipt, { signal });
  }
}
