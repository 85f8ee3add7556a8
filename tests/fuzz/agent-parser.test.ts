import { expect, test } from "bun:test";
import { execFile } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { buildAgent } from "../../guest-agent/init/build.ts";
import { encodeData, encodeMessage } from "../../guest-agent/protocol/codec.ts";
import { MARKER, messageTypes } from "../../guest-agent/protocol/constants.ts";
import { freshIdentity } from "../support/agent-identity.ts";

const run = promisify(execFile);

/** One good message of each kind: the fuzzer mutates from there. */
const seeds: Uint8Array[] = [
  encodeMessage(messageTypes.PING, 1),
  encodeMessage(messageTypes.IDENTIFY, 70_000, {
    ...freshIdentity({ hookTimeoutMs: 100, sshKey: { private: "k", public: "p" } }),
  }),
  encodeMessage(messageTypes.RELEASE, 70_001, { realtimeNs: 1_700_000_000_000_000_000n }),
  encodeMessage(messageTypes.EXEC, 2, {
    argv: ["a", "bc"],
    env: ["A=1"],
    cwd: "/",
    stdin: true,
    uid: 0,
    gid: 1,
  }),
  encodeMessage(messageTypes.KILL, 3, { target: 2, signal: 9 }),
  encodeMessage(messageTypes.PUT, 4, { path: "/x", mode: 0o644 }),
  encodeData(5, 0, Uint8Array.of(1, 2, 3)),
  encodeMessage(messageTypes.CREDIT, 6, { s: 1, n: 65536 }),
  Buffer.concat([
    MARKER,
    encodeMessage(messageTypes.LIST, 7, { path: "/" }),
    encodeMessage(messageTypes.QUIESCE, 8),
  ]),
];

test("the agent's parser survives libFuzzer under the address sanitizer", async () => {
  const { path } = await buildAgent({ variant: "fuzz" });
  const directory = mkdtempSync(join(tmpdir(), "flurry-fuzz-"));
  try {
    const corpus = join(directory, "corpus");
    mkdirSync(corpus);
    for (const [i, seed] of seeds.entries()) {
      writeFileSync(join(corpus, `stream-${i}`), Buffer.concat([Uint8Array.of(i * 3), seed]));
      writeFileSync(join(corpus, `payload-${i}`), Buffer.concat([Uint8Array.of(255), seed.subarray(4)]));
    }
    const args = [
      "-runs=200000",
      "-seed=1",
      "-max_len=600",
      "-timeout=10",
      `-artifact_prefix=${directory}/`,
      corpus,
    ];
    const { stderr } = await run(path, args, { maxBuffer: 64 << 20 });
    expect(stderr).toContain("Done 200000 runs");
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}, 300_000);
