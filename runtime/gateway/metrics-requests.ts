import { Counter, Gauge, type Registry } from "prom-client";
import type { RequestFigures } from "../workers/js/request-figures.ts";

type Totals = "forks" | "failedForks" | "usedAhead" | "unused";

const TOTALS: readonly [name: string, help: string, figure: Totals][] = [
  ["flurry_worker_forks_total", "Forks begun for requests to JS workers, or ahead of them", "forks"],
  ["flurry_worker_forks_failed_total", "Those of them that failed", "failedForks"],
  ["flurry_worker_spares_used_total", "Forks made ahead of need that a request has taken", "usedAhead"],
  ["flurry_worker_unused_total", "Forks that have ended without ever having had a request", "unused"],
];

/**
 * Figures of the requests to JS workers, all workers together. Who answers them counts; here it is asked.
 *
 * @param figures - whose numbers but `children` and `waiting` never fall
 */
export function addRequestMetrics(registers: Registry[], figures: () => RequestFigures): void {
  new Gauge({
    name: "flurry_worker_children",
    help: "Forks that answer requests to JS workers, by what they are doing",
    labelNames: ["state"],
    registers,
    collect() {
      for (const [state, count] of Object.entries(figures().children)) this.set({ state }, count);
    },
  });
  new Gauge({
    name: "flurry_worker_requests_waiting",
    help: "Requests that wait for a fork",
    registers,
    collect() {
      this.set(figures().waiting);
    },
  });
  new Counter({
    name: "flurry_worker_requests_total",
    help: "Requests to JS workers, by how they ended",
    labelNames: ["outcome"],
    registers,
    collect() {
      this.reset();
      for (const [outcome, count] of Object.entries(figures().outcomes)) this.inc({ outcome }, count);
    },
  });
  for (const [name, help, figure] of TOTALS) {
    new Counter({
      ...{ name, help, registers },
      collect() {
        this.reset();
        this.inc(figures()[figure]);
      },
    });
  }
}

/**
 * How long requests waited, in Prometheus' text format: prom-client's own histogram takes one value after the
 * other, and none that have been counted already.
 */
export function waitsText({ waits }: RequestFigures): string {
  const name = "flurry_worker_wait_seconds";
  const buckets = Object.entries(waits.upTo).map(
    ([ms, count]) => `${name}_bucket{le="${Number(ms) / 1000}"} ${count}`,
  );
  return [
    `# HELP ${name} From a request to a JS worker to its fork, or its place in one`,
    `# TYPE ${name} histogram`,
    ...buckets,
    `${name}_bucket{le="+Inf"} ${waits.count}`,
    `${name}_sum ${waits.sumMs / 1000}`,
    `${name}_count ${waits.count}`,
    "",
  ].join("\n");
}
