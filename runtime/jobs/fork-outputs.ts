import type { TreeVm } from "../fork/family/tree.ts";
import type { OutputHandler } from "./task.ts";

/** Longest line that is kept together. */
const LINE_BYTES = 64 * 1024;

/**
 * What forked VMs of a task print, as lines of the task's own output that say which VM each is of: `[t1.3] `, and
 * `[t1.3 t2.1] ` of a child's child.
 */
export class ForkOutputs {
  readonly #onOutput: OutputHandler;
  readonly #partial = new Map<string, Buffer>();

  constructor(onOutput: OutputHandler) {
    this.#onOutput = onOutput;
  }

  async write(node: TreeVm, stream: "stdout" | "stderr", chunk: Uint8Array): Promise<void> {
    const key = `${node.vm} ${stream}`;
    const bytes = Buffer.concat([this.#partial.get(key) ?? Buffer.alloc(0), chunk]);
    const end = bytes.length > LINE_BYTES ? bytes.length : bytes.lastIndexOf(10) + 1;
    this.#partial.set(key, bytes.subarray(end));
    if (end > 0) await this.#onOutput(stream, prefixed(wayTo(node), bytes.subarray(0, end)));
  }

  /** What stands without an end of line when a VM has ended. */
  async end(node: TreeVm): Promise<void> {
    for (const stream of ["stdout", "stderr"] as const) {
      const rest = this.#partial.get(`${node.vm} ${stream}`);
      this.#partial.delete(`${node.vm} ${stream}`);
      if (rest?.length) await this.#onOutput(stream, prefixed(wayTo(node), rest));
    }
  }
}

function wayTo(node: TreeVm): string {
  const way: string[] = [];
  for (let at: TreeVm | undefined = node; at?.parent; at = at.parent)
    way.unshift(`${at.ticket ?? ""}.${at.index}`);
  return `[${way.join(" ")}] `;
}

function prefixed(prefix: string, bytes: Buffer): Uint8Array {
  const lines = bytes.toString("latin1").replace(/\n$/, "").split("\n");
  return Buffer.from(lines.map((line) => `${prefix}${line}\n`).join(""), "latin1");
}
