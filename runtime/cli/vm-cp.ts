import { statSync } from "node:fs";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { Command } from "commander";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import type { FlurryClient } from "../client/mod.ts";
import { streamOf } from "../client/streams.ts";
import { formatBytes } from "./format.ts";
import { type GatewayOptions, gatewayClient, gatewayOptions } from "./gateway-client.ts";
import { Output } from "./output.ts";
import { PacedSink } from "./paced-sink.ts";
import { cliSignal } from "./signal.ts";

/** The standard input, or output. */
const STANDARD = "-";

const EXAMPLES = `
Examples:
  flurry vm cp run.sh vm-0123456789ab:/opt/run.sh
  flurry vm cp vm-0123456789ab:/etc/os-release .
  flurry vm cp vm-0123456789ab:/var/log/syslog - | tail

One file at a time, with its permission bits; - is the standard input or output. What is there is replaced when all of
the new one is there, and not before. A file here whose name looks like ID:/PATH is written ./ID:/PATH.`;

/** `flurry vm cp`. */
export function copyCommand(): Command {
  const command = new Command("cp")
    .summary("Copy a file into a VM, or out of one")
    .description("Copies a file into a VM, or out of one")
    .argument("<from>", "PATH, or ID:/PATH in a VM")
    .argument("<to>", "ID:/PATH in a VM, or PATH")
    .addHelpText("after", EXAMPLES)
    .action((from: string, to: string, options: GatewayOptions) => copy(from, to, options));
  return gatewayOptions(command);
}

/** A file here, or in a VM. */
export type Place = { vm?: undefined; path: string } | { vm: string; path: string };

/** `vm-1:/a` is in a VM; all else is here. */
export function placeOf(text: string): Place {
  const [, vm, path] = /^([a-z0-9-]{1,64}):(\/.*)$/s.exec(text) ?? [];
  return vm === undefined || path === undefined ? { path: text } : { vm, path };
}

async function copy(from: string, to: string, options: GatewayOptions): Promise<void> {
  const source = placeOf(from);
  const target = placeOf(to);
  const output = new Output({ json: options.json ?? false });
  const client = gatewayClient(options);
  let size: number;
  let path: string;
  if (source.vm === undefined && target.vm !== undefined) {
    path = target.path.endsWith("/") ? `${target.path}${basename(source.path)}` : target.path;
    size = await upload(client, source.path, { vm: target.vm, path });
    path = `${target.vm}:${path}`;
  } else if (source.vm !== undefined && target.vm === undefined) {
    path = targetPath(target.path, source.path);
    size = await download(client, source, path);
  } else {
    const what = source.vm === undefined ? "Neither" : "Each";
    throw new FlurryError("BAD_ARGUMENT", `${what} of "${from}" and "${to}" is in a VM`, {
      hint: "one of them is to be ID:/PATH",
    });
  }
  if (path === STANDARD) return;
  output.emit({ event: "copied", from, to: path, size });
  output.note(`${from} -> ${path}, ${formatBytes(size)}`);
}

async function upload(
  client: FlurryClient,
  local: string,
  { vm, path }: { vm: string; path: string },
): Promise<number> {
  const signal = cliSignal();
  if (local === STANDARD) {
    return (await client.vms.writeFile(vm, path, streamOf(process.stdin), { signal })).size;
  }
  await using file = await openFile(local);
  const { mode } = await file.stat();
  const stream = streamOf(file.createReadStream({ autoClose: false }));
  return (await client.vms.writeFile(vm, path, stream, { mode, signal })).size;
}

async function download(
  client: FlurryClient,
  { vm, path }: { vm: string; path: string },
  local: string,
): Promise<number> {
  const { stream, mode } = await client.vms.readFile(vm, path, { signal: cliSignal() });
  if (local === STANDARD) return await show(stream);
  const temporary = join(dirname(local), `.flurry-${crypto.randomUUID()}`);
  try {
    await using file = await refined(open(temporary, "wx", 0o600), local);
    const size = await write(stream, file, local);
    await refined(file.chmod(mode & 0o777), local);
    await refined(rename(temporary, local), local);
    return size;
  } catch (error) {
    await rm(temporary, { force: true });
    throw error;
  }
}

async function write(stream: ReadableStream<Uint8Array>, file: FileHandle, local: string): Promise<number> {
  let size = 0;
  for await (const chunk of stream) {
    await refined(file.writeFile(chunk), local);
    size += chunk.byteLength;
  }
  return size;
}

async function show(stream: ReadableStream<Uint8Array>): Promise<number> {
  const out = new PacedSink(process.stdout);
  let size = 0;
  for await (const chunk of stream) {
    out.write(chunk);
    size += chunk.byteLength;
    await out.drained;
  }
  return size;
}

/** In a directory, a file keeps its name. */
function targetPath(local: string, remote: string): string {
  if (local === STANDARD) return local;
  const isDirectory = local.endsWith("/") || statSync(local, { throwIfNoEntry: false })?.isDirectory();
  return isDirectory ? join(local, basename(remote)) : local;
}

/** @throws FlurryError BAD_ARGUMENT for what is no file, or nobody may read */
async function openFile(local: string): Promise<FileHandle> {
  try {
    if (statSync(local).isDirectory()) throw new Error("it is a directory");
    return await open(local);
  } catch (cause) {
    const reason = cause instanceof Error ? cause.message : String(cause);
    throw new FlurryError("BAD_ARGUMENT", `Cannot read "${local}": ${reason}`, { cause });
  }
}

function refined<T>(work: Promise<T>, path: string): Promise<T> {
  return work.catch((cause: unknown) => {
    const reason = cause instanceof Error ? cause.message : String(cause);
    const full = codeOf(cause) === "ENOSPC" || codeOf(cause) === "EDQUOT";
    throw new FlurryError(full ? "NO_SPACE" : "BAD_ARGUMENT", `Cannot write "${path}": ${reason}`, { cause });
  });
}
