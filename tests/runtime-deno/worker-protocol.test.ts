// The host's end of the worker channel, with the same tests on Deno.
import "../unit/worker-protocol-client.test.ts";
