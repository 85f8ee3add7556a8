/** The shapes of what crosses HTTP: the gateway checks by them, the client is typed by them. */
export * from "./admin.ts";
export * from "./common.ts";
export * from "./crons.ts";
export * from "./jobs.ts";
export * from "./modules.ts";
export * from "./receipts.ts";
export * from "./vms.ts";
export * from "./workers.ts";
