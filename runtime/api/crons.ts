import { Cron } from "croner";
import { z } from "zod";
import { Failure, Name, Time } from "./common.ts";

/** Most times that one worker may have: as many as people list by hand. */
const MAX_CRONS = 16;

/** Five fields with one space between, of the characters that mean the same everywhere. */
const SHAPE = /^[0-9A-Za-z*,/#-]{1,64}( [0-9A-Za-z*,/#-]{1,64}){4}$/;

/** A time that comes again and again, as cron has it, in UTC: minute, hour, day, month and day of the week. */
export const CronExpression = z
  .string()
  .max(100)
  .superRefine((text, context) => {
    const message = whyWrong(text);
    if (message !== undefined) context.addIssue({ code: "custom", message });
  })
  .meta({ example: "*/5 * * * *" });

export const Crons = z
  .array(CronExpression)
  .max(MAX_CRONS)
  .refine((crons) => new Set(crons).size === crons.length, "have one twice");

/** Has a worker's `scheduled()` called now. */
export const ScheduledTrigger = z
  .strictObject({
    cron: CronExpression.optional().meta({
      description:
        "What the event says; it need not be one of the worker's. The worker's first one by default",
    }),
  })
  .meta({ id: "ScheduledTrigger", example: { cron: "*/5 * * * *" } });

/** How a call of `scheduled()` went. */
export const ScheduledRun = z
  .object({
    name: Name,
    version: z.int(),
    cron: z.string(),
    scheduledTime: Time,
    vm: z.string(),
    ms: z.number().meta({ description: "From the call until it and what it gave to `waitUntil` were over" }),
    outcome: z.enum(["succeeded", "failed"]),
    error: Failure.optional(),
  })
  .meta({ id: "ScheduledRun" });
export type ScheduledRun = z.infer<typeof ScheduledRun>;

/**
 * The first time after another one that an expression names, both in ms since 1970.
 *
 * @param cron - a `CronExpression`
 */
export function nextCronTime(cron: string, after: number): number {
  const next = parsed(cron).nextRun(new Date(after));
  // That there is one was seen when the expression was checked, and years repeat.
  return next?.getTime() ?? Number.POSITIVE_INFINITY;
}

function parsed(cron: string): Cron {
  return new Cron(cron, { mode: "5-part", utcOffset: 0 });
}

/** What is wrong with an expression; undefined if nothing is. */
function whyWrong(text: string): string | undefined {
  if (!SHAPE.test(text)) {
    return 'must be five fields with one space between, as "*/5 * * * *"';
  }
  const weekday = text.slice(text.lastIndexOf(" ") + 1);
  // 1 is Monday in cron and Sunday on Cloudflare: nobody finds out before the wrong day.
  if (/\d/.test(weekday.replace(/[#/]\d+/g, ""))) {
    return "must name days of the week as MON or MON-FRI: their numbers do not mean the same everywhere";
  }
  try {
    return parsed(text).nextRun(new Date(0)) === null ? "names a time that never comes" : undefined;
  } catch (error) {
    const reason = error instanceof Error ? error.message.replace(/^CronPattern: /, "") : String(error);
    return `is no time: ${reason}`;
  }
}
