import { readdir } from "node:fs/promises";
import { Counter, Gauge, type Registry } from "prom-client";

/**
 * Figures of this process under Prometheus' usual names. prom-client's own set needs parts of Node that
 * Bun and Deno do not both have.
 */
export function addProcessMetrics(registers: Registry[]): void {
  new Counter({
    name: "process_cpu_seconds_total",
    help: "Processor time that this process has used",
    registers,
    collect() {
      const { user, system } = process.cpuUsage();
      this.reset();
      this.inc((user + system) / 1e6);
    },
  });
  new Gauge({
    name: "process_resident_memory_bytes",
    help: "Memory of this process in RAM",
    registers,
    collect() {
      this.set(process.memoryUsage.rss());
    },
  });
  new Gauge({
    name: "process_open_fds",
    help: "File descriptors that are open",
    registers,
    async collect() {
      this.set((await readdir("/proc/self/fd")).length);
    },
  });
  const start = new Gauge({
    name: "process_start_time_seconds",
    help: "When this process began, in seconds since 1970",
    registers,
  });
  start.set(Date.now() / 1000 - process.uptime());
}
