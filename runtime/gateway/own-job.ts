import type { Context } from "hono";
import { FlurryError } from "../../errors/errors.ts";
import type { StoredJob } from "../jobs/ports.ts";
import type { GatewayContext, GatewayEnv, Principal } from "./context.ts";

/**
 * A job that the asker may see. Another key's job is as if there were none.
 *
 * @throws FlurryError JOB_NOT_FOUND
 */
export async function ownJob(
  { store }: Pick<GatewayContext, "store">,
  c: Context<GatewayEnv>,
  id: string,
): Promise<StoredJob> {
  const stored = await store.jobs.get(id);
  const { principal } = c.var;
  if (stored !== undefined && (isAdmin(principal) || stored.owner === principal.owner)) return stored;
  throw new FlurryError("JOB_NOT_FOUND", `There is no job ${id}`, {
    hint: "flurry job ls, or GET /v1/jobs, lists the jobs",
  });
}

export function isAdmin({ scopes }: Principal): boolean {
  return scopes.has("admin");
}
