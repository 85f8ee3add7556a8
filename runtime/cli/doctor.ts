import { Command } from "commander";
import { isRoot } from "../home.ts";
import { examine, type Finding } from "./doctor-checks.ts";
import { Output } from "./output.ts";
import { cliSignal } from "./signal.ts";

/** `flurry doctor`: what Flurry needs, what was found, what to do. Exit code 3 if something needed is missing. */
export function doctorCommand(): Command {
  return new Command("doctor")
    .description("Shows each requirement, what was found and what to do; exit code 3 if one is missing")
    .option("--json", "one JSON object a line")
    .action(async (options: { json?: boolean }) => {
      const output = new Output(options);
      const findings = await examine(cliSignal());
      for (const finding of findings) output.emit({ event: "requirement", ...finding });
      output.print(describeFindings(findings));
      const missing = findings
        .filter((finding) => finding.status === "missing")
        .map((finding) => finding.name);
      output.emit({ event: "summary", ready: missing.length === 0, missing });
      output.print(`\n${missing.length === 0 ? "Ready: ./flurry demo" : adviceFor(missing)}`);
      if (missing.length > 0) process.exitCode = 3;
    });
}

function adviceFor(missing: readonly string[]): string {
  const advice = isRoot() ? "\n./flurry demo installs the Debian packages among them" : "";
  return `Missing: ${missing.join(", ")}${advice}`;
}

const marks = { ok: "✓", missing: "✗", degraded: "!", info: "·" } as const;

function describeFindings(findings: readonly Finding[]): string {
  const width = Math.max(...findings.map((finding) => finding.name.length));
  return findings
    .flatMap(({ name, status, found, todo }) => {
      const line = `${marks[status]} ${name.padEnd(width)}  ${found}`;
      return todo === undefined ? [line] : [line, `  ${" ".repeat(width)}  → ${todo}`];
    })
    .join("\n");
}
