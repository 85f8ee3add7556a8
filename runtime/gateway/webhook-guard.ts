import { FlurryError } from "../../errors/errors.ts";
import { AddressGuard, type AddressGuardOptions } from "../net/address-guard.ts";

/**
 * Keeps webhooks away from this machine and from private networks, which whoever may submit a job could
 * otherwise reach through the gateway. It refuses by WEBHOOK_FORBIDDEN.
 */
export class WebhookGuard extends AddressGuard {
  /** @throws FlurryError BAD_ARGUMENT for an entry of `allow` that is none */
  constructor(options: AddressGuardOptions = {}) {
    super(forbidden, options);
  }
}

function forbidden(reason: string): FlurryError {
  return new FlurryError("WEBHOOK_FORBIDDEN", `The webhook may not be sent: ${reason}`, {
    hint: "the gateway sends to public addresses, and to hosts that it is started with --webhook-allow for",
  });
}
