import { Hono } from "hono";

/** An app that has something to get warm: a table that is made once, and looked up by each request. */
const app = new Hono();
const table = Array.from({ length: 10_000 }, (_, index) => ({ id: index, name: `item ${index}` }));

app.get("/items/:id", (c) => c.json(table[Number(c.req.param("id"))] ?? null));

export default {
  /** Says beside the app's answer which VM it comes from; on the host there is none. */
  async fetch(request: Request, env: unknown, context?: { vm?: { id: string } }): Promise<Response> {
    const answer = await app.fetch(request, env as object);
    if (context?.vm) answer.headers.set("x-vm", context.vm.id);
    return answer;
  },
};
