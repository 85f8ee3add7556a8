/**
 * Serves a made-up image. Arguments: directory of the keys, pages of the image, pages after which it
 * kills itself. Prints its port.
 */

import { installationKeys } from "../../memserver/peer/keys.ts";
import { PageServer } from "../../memserver/peer/server.ts";
import { KEY, madeUpImage } from "./memserver-peers.ts";

const [keys, pages, last] = process.argv.slice(2) as [string, string, string];
const image = madeUpImage(Number(pages));
const plain = image.served();
let left = Number(last);
const server = await PageServer.listen({
  ...{ host: "127.0.0.1", port: 0, keys: await installationKeys(keys) },
  provider: {
    find: async (key) => (key === KEY ? image.hash : undefined),
    open: async () =>
      image.served({
        read: (page, count, target, at) => {
          left -= count;
          if (left < 0) process.kill(process.pid, "SIGKILL");
          return plain.read(page, count, target, at);
        },
      }),
  },
});
process.stdout.write(`${server.port}\n`);
