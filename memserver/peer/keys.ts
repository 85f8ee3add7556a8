import { createPrivateKey, X509Certificate } from "node:crypto";
import { type FileHandle, mkdir, mkdtemp, open, readFile, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { codeOf, FlurryError } from "../../errors/errors.ts";

/** The name in the certificate. Peers are known by their key, whatever address they have. */
export const SERVER_NAME = "memserver.flurry.internal";
const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
/** So far apart that no clock of a host makes the certificate invalid: it is the key that counts. */
const VALID = { notBefore: new Date("2020-01-01"), notAfter: new Date("2120-01-01") };

/**
 * What all memservers of one installation have in common, and nobody else: each of them shows this
 * certificate, and accepts no other.
 */
export interface InstallationKeys {
  /** PEM. */
  key: string;
  /** PEM. */
  certificate: string;
  /** The certificate's bytes (DER), for comparing. */
  raw: Buffer;
}

/**
 * The keys in `DIRECTORY/key.pem` and `DIRECTORY/cert.pem`. The operator copies the directory to the
 * other hosts. Both files are made if there is no directory, or an empty one; of several processes that
 * do so at the same time, one wins, and all get its keys.
 *
 * @throws FlurryError BAD_ARGUMENT when they cannot be used: one file of the two is missing, they do not
 * belong together, or others may read the key
 */
export async function installationKeys(directory: string): Promise<InstallationKeys> {
  const there = await load(directory);
  if (there) return there;
  await make(directory);
  const made = await load(directory);
  if (made) return made;
  throw unusable(directory, "it holds other files, but no keys", "Give the keys a directory of their own");
}

async function load(directory: string): Promise<InstallationKeys | undefined> {
  const keyPath = join(directory, "key.pem");
  const [key, certificate] = await Promise.all([text(keyPath), text(join(directory, "cert.pem"))]);
  if (key === undefined && certificate === undefined) return undefined;
  if (key === undefined || certificate === undefined) {
    const missing = key === undefined ? "key.pem" : "cert.pem";
    throw unusable(directory, `"${missing}" is missing`, "Copy both files from another host");
  }
  const { mode } = await stat(keyPath);
  if ((mode & 0o077) !== 0) {
    throw unusable(directory, "others may read its key", `Run: chmod 600 ${keyPath}`);
  }
  return { key, certificate, raw: parse(directory, key, certificate) };
}

function parse(directory: string, key: string, certificate: string): Buffer {
  let parsed: X509Certificate;
  let belongs: boolean;
  try {
    parsed = new X509Certificate(certificate);
    belongs = parsed.checkPrivateKey(createPrivateKey(key));
  } catch (error) {
    throw unusable(directory, "its files cannot be read as PEM", "Copy both files from another host", error);
  }
  if (!belongs) throw unusable(directory, "its key is not its certificate's", "Copy both files together");
  return Buffer.from(parsed.raw);
}

/** Makes a whole directory and moves it into place, so that both files are there or none is. */
async function make(directory: string): Promise<void> {
  const parent = dirname(directory);
  await mkdir(parent, { recursive: true });
  const staging = await mkdtemp(join(parent, `.${basename(directory)}-`));
  try {
    const { key, certificate } = await generate();
    await write(join(staging, "key.pem"), key);
    await write(join(staging, "cert.pem"), certificate);
    await rename(staging, directory);
  } catch (error) {
    // Somebody else was faster, or there is something else: `load` tells.
    if (codeOf(error) !== "ENOTEMPTY" && codeOf(error) !== "EEXIST") throw error;
  } finally {
    await rm(staging, { recursive: true, force: true });
  }
}

async function generate(): Promise<{ key: string; certificate: string }> {
  // Loaded here only: nobody else needs it, and it takes a tenth of a second.
  await import("reflect-metadata");
  const x509 = await import("@peculiar/x509");
  const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    ...{ name: "CN=Flurry memserver", ...VALID, keys, signingAlgorithm: ALGORITHM },
    extensions: [new x509.SubjectAlternativeNameExtension([{ type: "dns", value: SERVER_NAME }])],
  });
  const key = await crypto.subtle.exportKey("pkcs8", keys.privateKey);
  return { key: x509.PemConverter.encode(key, "PRIVATE KEY"), certificate: certificate.toString("pem") };
}

async function write(path: string, content: string): Promise<void> {
  await using file: FileHandle = await open(path, "wx", 0o600);
  await file.writeFile(`${content.trimEnd()}\n`);
  await file.sync();
}

async function text(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (codeOf(error) === "ENOENT") return undefined;
    throw error;
  }
}

function unusable(directory: string, reason: string, hint: string, cause?: unknown): FlurryError {
  return new FlurryError("BAD_ARGUMENT", `Cannot use the keys in "${directory}": ${reason}`, { hint, cause });
}
