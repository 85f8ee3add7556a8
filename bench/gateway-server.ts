/**
 * A server of the bench, in a process of its own so that it shares no event loop with those who ask:
 *   gateway-server.ts bare           answers each request with the same JSON
 *   gateway-server.ts held DIR       a gateway whose tasks wait: what HTTP and the store cost
 *   gateway-server.ts instant DIR    a gateway whose tasks end at once: what running tasks costs without VMs
 * Prints its URL when it listens; ends with its standard input.
 */
import { once } from "node:events";
import { listen } from "../runtime/adapters/http-server.ts";
import { openGateway } from "../runtime/gateway/open.ts";
import { InstantRuntime } from "./gateway-instant.ts";
import { SAMPLE_JOB } from "./gateway-sample.ts";

const [, , mode, dir = ""] = process.argv;
const address = { hostname: "127.0.0.1", port: 0 };

await using server = await open();
process.stdout.write(`${server.url}\n`);
process.stdin.resume();
await once(process.stdin, "end");

async function open(): Promise<AsyncDisposable & { url: string }> {
  if (mode === "bare") return openBare();
  const runtime = () => new InstantRuntime(mode === "held" ? 0 : 16);
  return openGateway({ dir, listen: address, runtime });
}

async function openBare() {
  const answer = JSON.stringify(SAMPLE_JOB);
  const headers = { "content-type": "application/json" };
  const bare = await listen({
    ...address,
    fetch: async (request) => {
      // It takes the body in, as a gateway has to.
      if (request.body) await request.text();
      return new Response(answer, { headers });
    },
    onError: (error) => new Response(String(error), { status: 500 }),
  });
  return { url: bare.url, [Symbol.asyncDispose]: () => bare.stop(0) };
}
