import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { QmpClient } from "./client.ts";
import { commandsInUse, eventsInUse } from "./commands-in-use.ts";
import { type SchemaInUse, schemaInUse } from "./schema.ts";
import { renderSchema, renderTypes } from "./schema-render.ts";

/**
 * Starts a QEMU without a machine and asks it for the part of its schema that the project uses.
 *
 * @param binary Name or path of a `qemu-system-*` program.
 * @throws Error when it cannot be started; QmpError as QmpClient does.
 */
export async function readSchema(binary: string): Promise<SchemaInUse> {
  const directory = await mkdtemp(join(tmpdir(), "flurry-qmp-"));
  const path = join(directory, "qmp");
  const server = createServer();
  try {
    server.listen(path);
    await once(server, "listening");
    const machine = ["-M", "none", "-nodefaults", "-display", "none", "-S"];
    const qemu = spawn(binary, [...machine, "-qmp", `unix:${path}`], { stdio: ["ignore", "ignore", "pipe"] });
    let stderr = "";
    qemu.stderr.on("data", (chunk) => {
      stderr += String(chunk);
    });
    const exited = once(qemu, "exit");
    try {
      const gone = exited.then(() => {
        throw new Error(`"${binary}" ended before it spoke QMP: ${stderr.trim()}`);
      });
      const [socket] = (await Promise.race([once(server, "connection"), gone])) as [Socket];
      await using client = await QmpClient.connect(socket, { stderr: () => stderr });
      const { major, minor, micro } = client.greeting.version.qemu;
      const entries = await client.executeUntyped("query-qmp-schema");
      return schemaInUse(`${major}.${minor}.${micro}`, entries, commandsInUse, eventsInUse);
    } finally {
      qemu.kill("SIGKILL");
      await exited.catch(() => undefined);
    }
  } finally {
    server.close();
    await rm(directory, { recursive: true, force: true });
  }
}

/** The generated files of this room by name, for one QEMU. */
export function generatedFiles(schema: SchemaInUse): Record<string, string> {
  return {
    "commands.generated.ts": renderTypes(schema, commandsInUse),
    "schema-in-use.generated.ts": renderSchema(schema),
  };
}

/** `bun qmp/generate.ts`: writes the generated files, from the QEMU that FLURRY_QEMU names. */
if (import.meta.main) {
  const schema = await readSchema(process.env.FLURRY_QEMU ?? "qemu-system-x86_64");
  for (const [name, text] of Object.entries(generatedFiles(schema))) {
    await writeFile(join(import.meta.dirname, name), text);
  }
}
