import { createWebWorkerHandler, OAuthApp } from "@octokit/oauth-app";

const app = new OAuthApp({ clientType: "oauth-app", clientId: "0123", clientSecret: "4567" });
const handler = createWebWorkerHandler(app);

/** GitHub's login for applications, as its documentation shows it for Workers. */
export default {
  fetch: async (request: Request) => (await handler(request)) ?? new Response("Not found", { status: 404 }),
};
