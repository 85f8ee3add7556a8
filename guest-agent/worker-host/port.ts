/** What a port tells of. */
export interface PortEvents {
  /**
   * Bytes from a host, only valid during the call. The port reads on when the promise, if there is one,
   * has settled.
   */
  onBytes(bytes: Uint8Array): Promise<void> | undefined;
  /** The host went away. What comes next is from another one, which begins with a marker. */
  onHangup(): void;
  /** The port itself is gone. */
  onFailed(error: unknown): void;
}

/** The byte stream to whatever host is there. */
export interface Port extends AsyncDisposable {
  /** Begins to read. Called once. */
  start(events: PortEvents): void;
  /** Sends bytes; the promise, if there is one, settles when more may be sent, also when the host went. */
  write(bytes: Uint8Array): Promise<void> | undefined;
  /** A new host is spoken to from here on: what has not left yet is dropped. */
  forget(): void;
}
