import { readFileSync } from "node:fs";
import { join } from "node:path";
import { buildImage } from "../../guest-agent/image/mod.ts";
import type { TreePolicy } from "../../runtime/fork/family/tree.ts";
import type { VmNode } from "../../runtime/fork/family/vm-node.ts";
import { VmTree } from "../../runtime/fork/family/vm-tree.ts";
import { type OpenParentOptions, openParent } from "../../runtime/fork/open-parent.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { flurryHome } from "../../runtime/home.ts";
import { taskWarmUp } from "../../runtime/jobs/task.ts";
import type { Host } from "../../runtime/vm/host.ts";

/** A frozen parent with Python, whose programs can speak to the host in the bare protocol. */
export async function pythonParent(host: Host, options: Partial<OpenParentOptions> = {}): Promise<Parent> {
  const image = await buildImage("python", { home: flurryHome() });
  const { parent } = await openParent({
    ...{ host, image },
    files: [
      {
        path: "/usr/local/lib/python3.11/dist-packages/fork_calls.py",
        data: readFileSync(join(import.meta.dirname, "fork_calls.py")),
        mode: 0o644,
      },
    ],
    warmUp: taskWarmUp(["python3", "-c", "import fork_calls, json, time, threading"]),
    ...options,
  });
  return parent;
}

/** A tree whose first VM runs Python, and what forked VMs of it print. */
export interface PythonTree extends AsyncDisposable {
  tree: VmTree;
  root: VmNode;
  /** By index, in the order of their ends of line. */
  printed: Map<number, string>;
  /** VMs that were forked by programs so far. */
  readonly forked: number;
  /** Runs a script in the root to its end; its output. */
  run(script: string, timeoutMs?: number): Promise<string>;
}

export async function pythonTree(
  parent: Parent,
  policy: Partial<TreePolicy<VmNode>> = {},
): Promise<PythonTree> {
  const printed = new Map<number, string>();
  let forked = -1; // the first VM is not forked by a program
  const tree = new VmTree({
    place: () => ({ [Symbol.dispose]: () => undefined }),
    output: ({ index }, _stream, chunk) => {
      printed.set(index, (printed.get(index) ?? "") + Buffer.from(chunk).toString());
    },
    ...policy,
    running: (node, child) => {
      forked += 1;
      return policy.running?.(node, child) ?? { [Symbol.dispose]: () => undefined };
    },
  });
  const root = await tree.root((node) =>
    parent.fork({ identity: { index: 0, hostname: "root" }, onCall: (call) => node.onCall(call) }),
  );
  return {
    ...{ tree, root, printed },
    get forked() {
      return forked;
    },
    run: async (script, timeoutMs = 60_000) => {
      const argv = ["python3", "-c", `from fork_calls import *\nc = Call()\n${script}`];
      const { stdout, stderr, code, signal } = await root.child.agent.run(argv, { timeoutMs });
      // One that ends its process group has said all.
      if (code === 0 || signal === "SIGTERM") return stdout;
      throw new Error(`The script has exited with ${code}: ${stdout}\n${stderr}`);
    },
    [Symbol.asyncDispose]: () => tree[Symbol.asyncDispose](),
  };
}
