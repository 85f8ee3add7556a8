import { afterAll, beforeAll, expect, test } from "bun:test";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { baseParent } from "../support/vm.ts";

let host: Host;
let parent: Parent;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host);
});

afterAll(async () => {
  await parent[Symbol.asyncDispose]();
  await host[Symbol.asyncDispose]();
});

test("fork() gives a child that runs programs under its own name", async () => {
  await using child = await parent.fork({ identity: { index: 7, hostname: "seven" } });
  const result = await child.agent.run(["/bin/uname", "-n"]);
  expect(result).toMatchObject({ code: 0, stdout: "seven\n" });
});

test("fork() gives children that do not see one another's writes", async () => {
  const identities = [0, 1, 2].map((index) => ({ index, hostname: `child-${index}` }));
  const children = await Promise.all(identities.map((identity) => parent.fork({ identity })));
  try {
    await Promise.all(children.map((child) => child.agent.putFile("/tmp/mine", child.identity.hostname)));
    const read = await Promise.all(children.map((child) => child.agent.run(["/bin/cat", "/tmp/mine"])));
    expect(read.map((result) => result.stdout)).toEqual(["child-0", "child-1", "child-2"]);
  } finally {
    await Promise.all(children.map((child) => child[Symbol.asyncDispose]()));
  }
});
