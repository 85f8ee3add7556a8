import { SigningKey } from "../../runtime/store/signing-key.ts";

// Prints the public key of a key file, as JSON.
const key = await SigningKey.open(process.argv[2]!);
process.stdout.write(`${JSON.stringify(key.publicKey)}\n`);
