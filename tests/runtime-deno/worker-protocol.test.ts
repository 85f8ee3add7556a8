// The host's end of the worker channel, with the same tests on Deno.
import "../unit/worker-protocol-client.test.ts";
import "../unit/worker-protocol-outbound.test.ts";
import "../unit/workers-outbound.test.ts";
