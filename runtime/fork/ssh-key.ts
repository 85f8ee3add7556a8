import { generateKeyPairSync, randomBytes } from "node:crypto";

const TYPE = "ssh-ed25519";
const COMMENT = "flurry";
/** Padding is up to this, for the cipher "none". */
const BLOCK_BYTES = 8;
const LINE_CHARACTERS = 70;

/** Both files of an SSH host key, as `ssh-keygen -t ed25519` writes them. */
export interface SshKey {
  private: string;
  public: string;
}

/** A fresh Ed25519 key in OpenSSH's formats (PROTOCOL.key of OpenSSH; RFC 8709). */
export function newSshKey(): SshKey {
  const { x = "", d = "" } = generateKeyPairSync("ed25519").privateKey.export({ format: "jwk" });
  const point = Buffer.from(x, "base64url");
  const seed = Buffer.from(d, "base64url");
  const publicBlob = Buffer.concat([text(TYPE), text(point)]);
  const check = randomBytes(4);
  const secrets = Buffer.concat([
    ...[check, check, text(TYPE), text(point), text(Buffer.concat([seed, point])), text(COMMENT)],
  ]);
  const padding = Buffer.from(
    Array.from({ length: (BLOCK_BYTES - (secrets.length % BLOCK_BYTES)) % BLOCK_BYTES }, (_, at) => at + 1),
  );
  const file = Buffer.concat([
    Buffer.from("openssh-key-v1\0"),
    ...[text("none"), text("none"), text("")],
    ...[Buffer.of(0, 0, 0, 1), text(publicBlob), text(Buffer.concat([secrets, padding]))],
  ]);
  const lines = file.toString("base64").match(new RegExp(`.{1,${LINE_CHARACTERS}}`, "g")) ?? [];
  return {
    private: ["-----BEGIN OPENSSH PRIVATE KEY-----", ...lines, "-----END OPENSSH PRIVATE KEY-----", ""].join(
      "\n",
    ),
    public: `${TYPE} ${publicBlob.toString("base64")} ${COMMENT}\n`,
  };
}

/** SSH's `string`: a length of 32 bits, and the bytes (RFC 4251, section 5). */
function text(value: string | Buffer): Buffer {
  const bytes = Buffer.from(value);
  const length = Buffer.alloc(4);
  length.writeUInt32BE(bytes.length);
  return Buffer.concat([length, bytes]);
}
