import type { z } from "zod";
import {
  type HostEntry,
  HostPage,
  type Key,
  type KeyCreate,
  KeyCreated,
  KeyPage,
  Secret,
  SecretPage,
} from "../api/mod.ts";
import type { CallOptions, ListOptions } from "./jobs.ts";
import { itemsOf } from "./pages.ts";
import type { Transport } from "./transport.ts";

/** Keys of a gateway. */
export class KeysApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Makes a key. What it is is told this once. */
  create(key: z.input<typeof KeyCreate>, { signal }: CallOptions = {}): Promise<z.output<typeof KeyCreated>> {
    return this.#transport.json("/v1/keys", KeyCreated, { method: "POST", json: key, signal });
  }

  list({ pageSize, signal }: ListOptions = {}): AsyncGenerator<Key> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/keys", KeyPage, { query: { limit: pageSize, cursor }, signal }),
    );
  }

  /** Ends a key: from its next request on, its holder is nobody. */
  remove(id: string, { signal }: CallOptions = {}): Promise<void> {
    return removeAt(this.#transport, `/v1/keys/${encodeURIComponent(id)}`, signal);
  }
}

/** Secrets of a gateway, whose values are never told again. */
export class SecretsApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** @param options.keys - ids of the keys whose jobs may have it. @default all */
  put(
    name: string,
    value: string,
    { keys, signal }: CallOptions & { keys?: string[] | undefined } = {},
  ): Promise<Secret> {
    const path = `/v1/secrets/${encodeURIComponent(name)}`;
    return this.#transport.json(path, Secret, { method: "PUT", json: { value, keys }, signal });
  }

  list({ pageSize, signal }: ListOptions = {}): AsyncGenerator<Secret> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/secrets", SecretPage, { query: { limit: pageSize, cursor }, signal }),
    );
  }

  remove(name: string, { signal }: CallOptions = {}): Promise<void> {
    return removeAt(this.#transport, `/v1/secrets/${encodeURIComponent(name)}`, signal);
  }
}

/** Machines that run children. */
export class HostsApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  list({ pageSize, signal }: ListOptions = {}): AsyncGenerator<HostEntry> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/hosts", HostPage, { query: { limit: pageSize, cursor }, signal }),
    );
  }
}

async function removeAt(transport: Transport, path: string, signal: AbortSignal | undefined): Promise<void> {
  const response = await transport.send(path, { method: "DELETE", signal });
  await response.body?.cancel();
}
