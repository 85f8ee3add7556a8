/**
 * Serves a worker's module by Bun alone, as `bun worker.ts` would, and says at which port:
 *
 *     bun serves-app.ts <module>
 */
export {};

const { default: app } = await import(process.argv[2]!);
/** As Workers have it; Bun gives its server there. */
const context = { waitUntil: () => undefined, passThroughOnException: () => undefined };
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: 0,
  development: false,
  idleTimeout: 0,
  fetch: (request) => app.fetch(request, {}, context),
});
console.log(server.port);
