import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { join } from "node:path";
import { ENTRY_BYTES, PageTable } from "../../memserver/image/page-table.ts";
import { OpenImages } from "../../memserver/process/open-images.ts";
import { Peers } from "../../memserver/process/peers.ts";
import type { Parent } from "../../runtime/fork/parent.ts";
import { Host } from "../../runtime/vm/host.ts";
import { allowUserfaultfd } from "../../runtime/vm/userfaultfd.ts";
import { differingPages, type OwnImage, ownImage } from "../support/memserver-lazy.ts";
import { PausedChild } from "../support/memserver-paused.ts";
import { baseParent, NO_TRACES, SETUP_MS, TEST_MS, temporaryDirectory, tracesOf } from "../support/vm.ts";

let host: Host;
let parent: Parent;
let image: OwnImage;

beforeAll(async () => {
  host = await Host.open();
  parent = await baseParent(host, { memMiB: 128 });
  allowUserfaultfd(host.qemu, host.user);
  image = ownImage(parent);
}, SETUP_MS);

afterAll(async () => {
  image[Symbol.dispose]();
  await parent[Symbol.asyncDispose]();
  expect(tracesOf(host)).toEqual(NO_TRACES);
  await host[Symbol.asyncDispose]();
});

function throwIt(trouble: unknown): never {
  throw trouble;
}

describe.each([
  ["with a second connection", true],
  ["with one connection", false],
])("the memory of a child that stands still, of another memserver, %s", (_name, preempt) => {
  test(
    "is the image, page by page",
    async () => {
      using keys = temporaryDirectory();
      using staging = temporaryDirectory();
      const options = { keys: join(keys.path, "keys"), emit: () => undefined, onTrouble: throwIt };
      await using giver = new Peers(options);
      await using given = new OpenImages((hash, dir, holders) => giver.open(hash, dir, holders));
      await given.open(image.hash, image.dir, []);
      const port = await giver.listen({ op: "listen", host: "127.0.0.1", port: 0, dir: image.dir }, given);
      await using taker = new Peers(options);
      await using taken = new OpenImages((hash, dir, holders) => taker.open(hash, dir, holders));
      const { source } = await taken.open(image.hash, staging.path, [`127.0.0.1:${port}`]);
      // Nothing of it was here before.
      await using child = await PausedChild.start({ host, parent, image, preempt, source });
      expect(await child.session.ended).toEqual({ kind: "complete" });
      expect(differingPages(child.pid, image.table)).toEqual([]);
      const other = Buffer.from(image.table.bytes);
      other[ENTRY_BYTES * 20_000] = other[ENTRY_BYTES * 20_000]! ^ 1;
      expect(differingPages(child.pid, new PageTable(other))).toEqual([20_000]);
    },
    TEST_MS,
  );
});
