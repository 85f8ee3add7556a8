/** fetch differs between runtimes: what is tried of the client on Bun holds on Deno too. */
import "../integration/client-gateway.test.ts";
import "../unit/client-artifacts.test.ts";
import "../unit/client-requests.test.ts";
import "../unit/client-streams.test.ts";
