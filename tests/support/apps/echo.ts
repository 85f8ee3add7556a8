import { createVoidServer } from "@scalar/void-server";

/** A Hono app that answers with what it was asked, as JSON, HTML, XML or a ZIP file. */
export default createVoidServer({ logger: false });
