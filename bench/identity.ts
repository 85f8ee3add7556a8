import { join } from "node:path";
import { bundleWorker } from "../guest-agent/worker-host/bundle.ts";
import { type Distribution, distributionOf } from "../runtime/stats.ts";
import type { AcceleratorVerdict } from "../runtime/vm/accelerator.ts";
import type { Host } from "../runtime/vm/host.ts";
import { JsChild } from "../runtime/workers/js/js-child.ts";
import { jsImage } from "../runtime/workers/js/js-image.ts";
import { openJsParent } from "../runtime/workers/js/js-parent.ts";

/** What any program of the guest draws, and what tells one machine from another: `NAME VALUE` a line. */
const GUEST = `
hex() { od -An -tx1 | tr -d ' \\n'; }
echo "/dev/urandom $(head -c 16 /dev/urandom | hex)"
echo "kernel uuid $(cat /proc/sys/kernel/random/uuid)"
echo "boot_id $(cat /proc/sys/kernel/random/boot_id)"
echo "machine-id $(cat /etc/machine-id)"
echo "host name $(uname -n)"
echo "temporary file $(mktemp -u)"`;

export interface IdentityBenchOptions {
  host: Host;
  /** Children that are compared. */
  n: number;
  memMiB: number;
  /** Children at the same time. @default 2 */
  atOnce?: number | undefined;
  onProgress?: ((stage: string) => void) | undefined;
  signal?: AbortSignal | undefined;
}

export interface SourceFigures {
  source: string;
  /** One in each child, and one in the parent where there is one. */
  draws: number;
  /** Draws that gave what an earlier one had given. */
  collisions: number;
}

export interface IdentityBenchResult {
  accel: AcceleratorVerdict["accel"];
  n: number;
  sources: SourceFigures[];
  /** Milliseconds in the guest: of the kernel's identity, of the worker's renewal, and of both. */
  identifyMs: { kernel: Distribution; hooks: Distribution; total: Distribution };
}

interface Drawn {
  draws: Record<string, string>;
  inParent: Record<string, string>;
  kernelMs: number;
  totalMs: number;
}

/** Forks n children of one parent, and counts what two of them have drawn alike. @throws as `openJsParent`, `JsChild.fork` */
export async function benchIdentity(options: IdentityBenchOptions): Promise<IdentityBenchResult> {
  const { host, n, memMiB, atOnce = 2, onProgress } = options;
  const signal = options.signal ?? new AbortController().signal;
  onProgress?.("a parent");
  const bundle = await bundleWorker(join(import.meta.dirname, "guest", "identity-app.ts"), { signal });
  const image = await jsImage({ home: host.home, signal });
  const { parent, origin } = await openJsParent({ host, image, memMiB, name: "identity", bundle, signal });
  await using _parent = parent;
  const children: Drawn[] = [];
  let next = 0;
  const lane = async () => {
    for (let index = next++; index < n; index = next++) {
      await using child = await JsChild.fork(parent, {
        ...{ index, name: "identity", env: {}, secrets: {}, output: {}, signal },
      });
      children.push(await drawnBy(child, signal));
      onProgress?.(`${children.length} of ${n} children`);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, lane));
  // What the parent has drawn no child may draw again.
  const rows = [...children.map(({ draws }) => draws), children[0]!.inParent];
  return {
    accel: origin.accel.accel,
    n,
    sources: compared(rows),
    identifyMs: {
      kernel: distributionOf(children.map(({ kernelMs }) => kernelMs)),
      hooks: distributionOf(children.map(({ kernelMs, totalMs }) => totalMs - kernelMs)),
      total: distributionOf(children.map(({ totalMs }) => totalMs)),
    },
  };
}

async function drawnBy(child: JsChild, signal: AbortSignal): Promise<Drawn> {
  const answer = await child.worker.fetch({ method: "GET", url: "http://worker/" }, { signal });
  const text = Buffer.concat(await Array.fromAsync(answer.body)).toString();
  const { drawn, inParent }: { drawn: Record<string, string>; inParent: Record<string, string> } =
    JSON.parse(text);
  const { stdout } = await child.agent.run(["/bin/sh", "-c", GUEST], { signal });
  const lines = stdout.trim().split("\n");
  const ofGuest = Object.fromEntries(
    lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), line.slice(line.lastIndexOf(" ") + 1)]),
  );
  const { kernelNs, tookNs } = child.proof.read;
  return {
    draws: { ...ofGuest, "vm id": child.id, ...drawn },
    inParent,
    kernelMs: kernelNs / 1e6,
    totalMs: tookNs / 1e6,
  };
}

function compared(rows: readonly Record<string, string>[]): SourceFigures[] {
  const sources = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  return sources.map((source) => {
    const values = rows.flatMap((row) => row[source] ?? []);
    return { source, draws: values.length, collisions: values.length - new Set(values).size };
  });
}
