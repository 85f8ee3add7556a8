import { Command } from "commander";
import type { Artifact } from "../client/mod.ts";
import { downloadArtifacts } from "./artifact-files.ts";
import { formatBytes, formatTable } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { cliSignal } from "./signal.ts";
import { wholeNumber } from "./worker-spec.ts";

interface ArtifactsOptions extends GatewayOptions {
  out?: string;
  task?: number;
}

const EXAMPLES = `
Examples:
  flurry job artifacts job_…
  flurry job artifacts job_… --out results

Files go to DIR/TASK/PATH, each completely or not at all. One that is there already with the same content
is left as it is, so a download that was cut off is taken up by the same command; one with another content
is an error, and stays.`;

/** `flurry job artifacts`: lists the files that tasks left in /out, or fetches them. */
export function artifactsCommand(): Command {
  const command = new Command("artifacts")
    .summary("List or fetch what tasks left in /out")
    .description("Lists what tasks left in /out; with --out fetches it")
    .argument("<job>", "id of the job")
    .option("--out <dir>", "directory to fetch them to")
    .option("--task <n>", "only of this task", wholeNumber("--task"))
    .addHelpText("after", EXAMPLES)
    .action((id: string, options: ArtifactsOptions) =>
      options.out === undefined ? list(id, options) : fetchAll(id, options.out, options),
    );
  return gatewayOptions(command);
}

async function list(id: string, { task, ...options }: ArtifactsOptions): Promise<void> {
  const out = new PacedSink(process.stdout);
  const output = new Output({ json: options.json ?? false, out });
  let page: Artifact[] = [];
  const show = async () => {
    const rows = page.map(({ task, path, size }) => [String(task), formatBytes(size), path]);
    const right = "right" as const;
    if (rows.length > 0) {
      output.print(
        formatTable([{ title: "", align: right }, { title: "", align: right }, { title: "" }], rows),
      );
    }
    page = [];
    await out.drained;
  };
  for await (const artifact of gatewayClient(options).jobs.artifacts(id, { task })) {
    output.emit({ event: "artifact", ...artifact });
    page.push(artifact);
    if (page.length === 100) await show();
  }
  await show();
}

async function fetchAll(id: string, dir: string, { task, ...options }: ArtifactsOptions): Promise<void> {
  const output = new Output({ json: options.json ?? false });
  using progress = output.progress(`Artifacts of ${id}`);
  let files = 0;
  let bytes = 0;
  let there = 0;
  await downloadArtifacts({
    client: gatewayClient(options),
    job: id,
    task,
    dir,
    signal: cliSignal(),
    onFile: ({ artifact, path, existed }) => {
      files += 1;
      bytes += artifact.size;
      if (existed) there += 1;
      output.emit({ event: "artifact", ...artifact, file: path, existed });
      if (!output.json) progress.advance(1, `${files} files, ${formatBytes(bytes)}`);
    },
  });
  const before = there === 0 ? "" : `, ${there} of them there before`;
  progress.finish(`${files} file${files === 1 ? "" : "s"} in "${dir}", ${formatBytes(bytes)}${before}`);
  output.emit({ event: "done", files, bytes, existed: there });
}
