import type { ConnectionOptions, TLSSocket, TlsOptions } from "node:tls";
import { peerFailed } from "./frames.ts";
import { type InstallationKeys, SERVER_NAME } from "./keys.ts";

/** Both ends show the installation's certificate, and trust no other. */
export function serverTls(keys: InstallationKeys): TlsOptions {
  return { ...shown(keys), requestCert: true, rejectUnauthorized: true };
}

export function clientTls(keys: InstallationKeys): ConnectionOptions {
  return { ...shown(keys), servername: SERVER_NAME, rejectUnauthorized: true };
}

function shown(keys: InstallationKeys) {
  const { key, certificate } = keys;
  return { key, cert: certificate, ca: [certificate], minVersion: "TLSv1.3" as const };
}

/**
 * Makes sure that the other end showed the installation's certificate itself, whatever the runtime's
 * TLS has made of the options.
 *
 * @throws FlurryError PEER_FAILED
 */
export function checkPeer(socket: TLSSocket, keys: InstallationKeys): void {
  const raw: Uint8Array | undefined = socket.getPeerCertificate()?.raw;
  if (socket.authorized && raw !== undefined && keys.raw.equals(raw)) return;
  throw peerFailed(`The peer at ${socket.remoteAddress} has not this installation's key`);
}
