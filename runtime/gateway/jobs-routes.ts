import { createRoute, OpenAPIHono, z } from "@hono/zod-openapi";
import { FlurryError } from "../../errors/errors.ts";
import { Job, JobId, JobPage, JobState, PageQuery, Tag, Task, TaskPage, TaskState } from "../api/mod.ts";
import { requireScope } from "./auth.ts";
import type { GatewayContext, GatewayEnv } from "./context.ts";
import { jsonResponse, problems } from "./openapi.ts";
import { isAdmin, ownJob } from "./own-job.ts";

/** Paths have text; a task's index is one of digits. */
export const TaskIndex = z.coerce
  .number()
  .int()
  .min(0)
  .max(999_999)
  .meta({ description: "Index of a task, from 0", example: 0 });
export const JobPath = z.object({ id: JobId });
export const TaskPath = z.object({ id: JobId, index: TaskIndex });

const tags = ["jobs"];

const listJobs = createRoute({
  method: "get",
  path: "/v1/jobs",
  operationId: "listJobs",
  tags,
  summary: "List jobs, newest first",
  description: "A key that is not an admin's sees its own jobs only.",
  middleware: requireScope("read"),
  request: {
    query: PageQuery.extend({
      state: JobState.optional().meta({ description: "Only jobs in this state" }),
      tag: Tag.optional().meta({ description: "Only jobs with this tag" }),
    }),
  },
  responses: { 200: jsonResponse("A page of jobs", JobPage), ...problems() },
});

const getJob = createRoute({
  method: "get",
  path: "/v1/jobs/{id}",
  operationId: "getJob",
  tags,
  summary: "See a job",
  middleware: requireScope("read"),
  request: { params: JobPath },
  responses: { 200: jsonResponse("The job", Job), ...problems(404) },
});

const deleteJob = createRoute({
  method: "delete",
  path: "/v1/jobs/{id}",
  operationId: "deleteJob",
  tags,
  summary: "Remove a job that has ended, with its results, logs and artifacts",
  middleware: requireScope("submit"),
  request: { params: JobPath },
  responses: { 204: { description: "It is gone" }, ...problems(404, 409, 507) },
});

const cancelJob = createRoute({
  method: "post",
  path: "/v1/jobs/{id}/cancel",
  operationId: "cancelJob",
  tags,
  summary: "Cancel a job",
  description:
    "Tasks that wait are canceled, running ones are ended. A job that has ended stays as it is. Done again, it changes nothing.",
  middleware: requireScope("submit"),
  request: { params: JobPath },
  responses: { 202: jsonResponse("The job, on its way to `canceled`", Job), ...problems(404, 507) },
});

const retryJob = createRoute({
  method: "post",
  path: "/v1/jobs/{id}/retry",
  operationId: "retryJob",
  tags,
  summary: "Queue the failed and canceled tasks of a job that has ended again, with all attempts",
  middleware: requireScope("submit"),
  request: { params: JobPath },
  responses: { 202: jsonResponse("The job", Job), ...problems(404, 409, 507) },
});

const retryTask = createRoute({
  method: "post",
  path: "/v1/jobs/{id}/tasks/{index}/retry",
  operationId: "retryTask",
  tags,
  summary: "Queue one failed or canceled task of a job that has ended again, with all attempts",
  middleware: requireScope("submit"),
  request: { params: TaskPath },
  responses: { 202: jsonResponse("The job", Job), ...problems(404, 409, 507) },
});

const listTasks = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/tasks",
  operationId: "listTasks",
  tags,
  summary: "List a job's tasks by their index",
  middleware: requireScope("read"),
  request: {
    params: JobPath,
    query: PageQuery.extend({
      state: TaskState.optional().meta({ description: "Only tasks in this state" }),
    }),
  },
  responses: { 200: jsonResponse("A page of tasks", TaskPage), ...problems(404) },
});

const getTask = createRoute({
  method: "get",
  path: "/v1/jobs/{id}/tasks/{index}",
  operationId: "getTask",
  tags,
  summary: "See a task",
  middleware: requireScope("read"),
  request: { params: TaskPath },
  responses: { 200: jsonResponse("The task", Task), ...problems(404) },
});

/** Jobs and tasks: what they are, and what is done with them. */
export function jobsRoutes(context: GatewayContext): OpenAPIHono<GatewayEnv> {
  const { store, jobs } = context;
  const app = new OpenAPIHono<GatewayEnv>();

  app.openapi(listJobs, async (c) => {
    const { principal } = c.var;
    const owner = isAdmin(principal) ? undefined : principal.owner;
    const { items, next } = await store.jobs.list({ ...c.req.valid("query"), owner });
    return c.json({ items: items.map(({ job }) => job), next }, 200);
  });

  app.openapi(getJob, async (c) => {
    const stored = await ownJob(context, c, c.req.valid("param").id);
    const waiting = context.dispatcher.waiting(stored);
    return c.json({ ...stored.job, ...(waiting === undefined ? {} : { waiting }) }, 200);
  });

  app.openapi(deleteJob, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    await jobs.remove(job.id);
    return c.body(null, 204);
  });

  app.openapi(cancelJob, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    const { owner } = c.var.principal;
    const reason = owner === "" ? "Canceled on request" : `Canceled by the key ${owner}`;
    const canceled = await jobs.cancel(job.id, reason);
    return c.json(canceled.job, 202);
  });

  app.openapi(retryJob, async (c) => {
    const { job } = await ownJob(context, c, c.req.valid("param").id);
    const retried = await jobs.retry(job.id);
    return c.json(retried.job, 202);
  });

  app.openapi(retryTask, async (c) => {
    const { id, index } = c.req.valid("param");
    await ownJob(context, c, id);
    const retried = await jobs.retry(id, index);
    return c.json(retried.job, 202);
  });

  app.openapi(listTasks, async (c) => {
    const { id } = c.req.valid("param");
    await ownJob(context, c, id);
    return c.json(await store.jobs.tasks(id, c.req.valid("query")), 200);
  });

  app.openapi(getTask, async (c) => {
    const { id, index } = c.req.valid("param");
    const { job } = await ownJob(context, c, id);
    const task = await store.jobs.task(id, index);
    if (task === undefined) {
      throw new FlurryError("TASK_NOT_FOUND", `Job ${id} has no task ${index}; it has ${job.tasks.total}`);
    }
    return c.json(task, 200);
  });

  return app;
}
