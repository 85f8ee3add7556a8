import { expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { bundleWorker } from "../../guest-agent/worker-host/bundle.ts";
import { WorkerSpec } from "../../runtime/api/mod.ts";
import { openParent } from "../../runtime/fork/open-parent.ts";
import { taskWarmUp } from "../../runtime/jobs/task.ts";
import { Host } from "../../runtime/vm/host.ts";
import { GUEST_BUN, jsImage } from "../../runtime/workers/js/js-image.ts";
import { VmTaskRuntime } from "../../runtime/workers/vm-task-runtime.ts";
import { pythonTree } from "../support/forked-trees.ts";
import { NO_TRACES, TEST_MS, temporaryDirectory, tracesOf } from "../support/vm.ts";
import { attempt, homeWithImages } from "../support/workers-runtime.ts";

const WORKER = `
import { clone, FlurryError, ended, exit, fork, identity, join, kill, nextChild, requestTicket } from "flurry:vm";
const state = { count: 0 };
export default {
  async task(input, ctx) {
    state.count = input.start;
    const refused = await exit().catch((error) => error instanceof FlurryError && error.code);
    const me = await fork(3);
    if (me.id > 0) {
      state.count += me.id;
      console.log("a child's own affair");
      const value = { count: state.count, vm: (await identity()).vm, random: Math.random(), uuid: crypto.randomUUID() };
      if (me.id === 3) return value;
      await exit(me.id, value);
    }
    const children = await join(me.ticket);
    const results = children.map(({ result }) => JSON.parse(new TextDecoder().decode(result)));
    const ticket = await requestTicket(2);
    if ((await clone(ticket)) > 0) await new Promise(() => {});
    const late = await nextChild(ticket, { timeoutMs: 0 }).catch(({ code }) => code);
    const killed = await kill(ticket);
    const states = [];
    for await (const child of ended(ticket)) states.push(child.state);
    return {
      refused, late, killed, states, count: state.count, id: (await identity()).id,
      ids: children.map(({ id, state, status }) => [id, state, status]),
      counts: results.map(({ count }) => count),
      different: ["vm", "random", "uuid"].map((key) => new Set([...results.map((each) => each[key]), Math.random()]).size),
    };
  },
};
`;

test(
  "a worker's task forks its VM and joins its children, which have its state and random numbers of their own",
  async () => {
    using home = await homeWithImages();
    using sources = temporaryDirectory();
    writeFileSync(join(sources.path, "worker.ts"), WORKER);
    const { code } = await bundleWorker(join(sources.path, "worker.ts"));
    await using runtime = await VmTaskRuntime.open({ home: home.path });
    const spec = WorkerSpec.parse({ module: { code, entry: "worker.ts" }, memoryMiB: 256 });
    const { value, stderr } = await attempt(runtime, spec, { input: '{"start":40}' });
    expect(JSON.parse(value ?? "null")).toEqual({
      ...{
        refused: "NOT_A_CHILD",
        late: "JOIN_TIMEOUT",
        killed: 2,
        states: ["killed", "killed"],
        count: 40,
        id: 0,
      },
      ids: [
        [1, "exited", 1],
        [2, "exited", 2],
        [3, "exited", 0],
      ],
      counts: [41, 42, 43],
      different: [4, 4, 4],
    });
    expect(stderr).toBe("");
    expect(runtime.vms.list(undefined)).toEqual([]);
  },
  2 * TEST_MS,
);

test(
  "any Bun program of the guest has flurry:vm, and a hundred children know their ids",
  async () => {
    using home = await homeWithImages();
    await using host = await Host.open({ home: home.path });
    const image = await jsImage({ home: home.path });
    {
      const { parent } = await openParent({
        host,
        image,
        memMiB: 256,
        warmUp: taskWarmUp([GUEST_BUN, "--version"]),
      });
      await using _parent = parent;
      await using tree = await pythonTree(parent);
      const { agent } = tree.root.child;
      const program = `
        import { checkpointParent, createClones, exit, fork, join, requestTicket } from "flurry:vm";
        const { id, ticket } = await fork(2);
        if (id > 0) await exit(0, new Uint8Array([id, 255]));
        const { id: woken, checkpoint } = await checkpointParent();
        if (woken > 0) await exit(woken, "woken");
        const second = await requestTicket(1);
        const made = await createClones(checkpoint, second);
        const [clone] = await join(second);
        const results = (await join(ticket)).map(({ result }) => [...result]);
        console.log(JSON.stringify([results, made, clone.status, Buffer.from(clone.result).toString()]));`;
      await agent.putFile("/tmp/t.ts", Buffer.from(program), { mode: 0o644 });
      const { stdout, stderr, code } = await agent.run([GUEST_BUN, "/tmp/t.ts"], { timeoutMs: 60_000 });
      expect({ stdout, stderr, code }).toEqual({
        stdout: '[[[1,255],[2,255]],1,1,"woken"]\n',
        stderr: "",
        code: 0,
      });
      const hundred = `
        import { exit, fork, identity, join } from "flurry:vm";
        const me = await fork(100);
        if (me.id > 0) await exit(0, [me.id, (await identity()).id]);
        const children = await join(me.ticket);
        console.log(JSON.stringify(children.map(({ result }) => JSON.parse(Buffer.from(result).toString()))));`;
      await agent.putFile("/tmp/hundred.ts", Buffer.from(hundred), { mode: 0o644 });
      const many = await agent.run([GUEST_BUN, "/tmp/hundred.ts"], { timeoutMs: 3 * TEST_MS });
      const ids = Array.from({ length: 100 }, (_, i) => [i + 1, i + 1]);
      expect({ ...many, stdout: JSON.parse(many.stdout) }).toMatchObject({
        stdout: ids,
        stderr: "",
        code: 0,
      });
    }
    expect(tracesOf(host)).toEqual(NO_TRACES);
  },
  // A minute on two idle cores: a bound, no expectation.
  4 * TEST_MS,
);
