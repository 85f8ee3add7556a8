/** Another server under the gateway, and another SQLite and fetch: its routes hold on Deno too. */
import "../integration/gateway-jobs.test.ts";
import "../integration/gateway-open.test.ts";
