/**
 * A runtime on a host of a test's network, which does what its standard input says, a JSON object a line,
 * and answers on its standard output: see `RemoteForks`. Its directories are those of its environment.
 */
import { join } from "node:path";
import { createInterface } from "node:readline";
import { codeOf } from "../../errors/errors.ts";
import { installationKeys } from "../../memserver/peer/keys.ts";
import { PageServer } from "../../memserver/peer/server.ts";
import { OpenImages } from "../../memserver/process/open-images.ts";
import { ImagesOnDisk } from "../../memserver/process/served-images.ts";
import type { Child } from "../../runtime/fork/child.ts";
import { Memserver } from "../../runtime/fork/memserver.ts";
import { openParent } from "../../runtime/fork/open-parent.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { memserverKeys } from "../../runtime/home.ts";
import { Host } from "../../runtime/vm/host.ts";
import { checkedOptions, type RemoteAnswer, type RemoteRequest } from "./remote-forks.ts";
import { baseImage, tracesOf } from "./vm.ts";

const host = await Host.open();
const keys = memserverKeys(host.home);
const memserver = new Memserver({ host, keys });
const children = new Map<string, Child>();
let parent: Parent | undefined;
let server: PageServer | undefined;

async function does(request: RemoteRequest): Promise<RemoteAnswer<RemoteRequest["op"]>> {
  switch (request.op) {
    case "open": {
      const steps: string[] = [];
      const opened = await openParent({
        ...{ host, image: await baseImage(), memserver, ...(await checkedOptions()) },
        ...{ peers: request.peers, memory: request.memory },
        onProgress: (event) => {
          if (event.step !== "console") steps.push(event.step);
        },
      });
      parent = opened.parent;
      return { steps };
    }
    case "fork": {
      const child = await parent!.fork({ identity: { index: children.size, hostname: request.child } });
      children.set(request.child, child);
      return { lazy: parent!.isLazy };
    }
    case "run": {
      const child = children.get(request.child)!;
      try {
        return await child.agent.run(request.argv);
      } catch (error) {
        throw await child.explain(error);
      }
    }
    case "end":
      await children.get(request.child)?.[Symbol.asyncDispose]();
      children.delete(request.child);
      return {};
    case "state":
      return {
        lazy: parent?.isLazy,
        memserver: await memserver.pid(),
        starts: memserver.starts,
        vms: tracesOf(host).processes.length,
      };
    case "serve": {
      const images = new OpenImages(() => Promise.reject(new Error("Nothing is opened here")));
      const provider = new ImagesOnDisk(join(host.home, "parents"), images);
      const options = { host: request.host, port: 0, keys: await installationKeys(keys), provider };
      server = await PageServer.listen(options);
      return { address: `${request.host}:${server.port}` };
    }
    case "served":
      return { ...server!.stats };
  }
}

function say(line: object): void {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, ...request } = JSON.parse(line);
  void does(request).then(
    (answer) => say({ id, answer }),
    (error) => say({ id, error: { code: codeOf(error) ?? "INTERNAL", message: String(error?.message) } }),
  );
}
for (const child of children.values()) await child[Symbol.asyncDispose]();
await parent?.[Symbol.asyncDispose]();
await server?.[Symbol.asyncDispose]();
await memserver[Symbol.asyncDispose]();
await host[Symbol.asyncDispose]();
process.exit(0);
