import { type ErrorCode, lookupCode } from "../../errors/codes.ts";
import { FlurryError } from "../../errors/errors.ts";
import {
  Checkpoint,
  CheckpointPage,
  SignedReceipt,
  Vm,
  type VmCreateInput,
  type VmExecInput,
  VmExecLine,
  VmExecResult,
  VmFileWritten,
  type VmForkResult,
  VmForkResults,
  VmPage,
  VmsEnded,
} from "../api/mod.ts";
import type { CallOptions, ListOptions } from "./jobs.ts";
import { itemsOf } from "./pages.ts";
import { lines, streamOf } from "./streams.ts";
import type { Transport } from "./transport.ts";

/** A piece of what a program printed; at last how it ended. */
export type VmOutput =
  | { stream: "stdout" | "stderr"; bytes: Uint8Array }
  | { exitCode: number }
  | { signal: string };

/** A file of a VM. */
export interface VmFileContent {
  stream: ReadableStream<Uint8Array>;
  /** Permission bits. */
  mode: number;
}

/** VMs of a gateway. Every method throws FlurryError: VM_NOT_FOUND, CHECKPOINT_NOT_FOUND, VMS_UNSUPPORTED … */
export class VmsApi {
  readonly #transport: Transport;

  constructor(transport: Transport) {
    this.#transport = transport;
  }

  /** Makes a VM, which runs until it is ended. */
  create(source: VmCreateInput, { signal }: CallOptions = {}): Promise<Vm> {
    return this.#transport.json("/v1/vms", Vm, { method: "POST", json: source, signal });
  }

  get(id: string, { signal }: CallOptions = {}): Promise<Vm> {
    return this.#transport.json(vmPath(id), Vm, { signal });
  }

  /** Those that run. */
  list({ pageSize, signal }: ListOptions = {}): AsyncGenerator<Vm> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/vms", VmPage, { query: { limit: pageSize, cursor }, signal }),
    );
  }

  /**
   * Forks a VM, which goes on.
   *
   * @param count - how many more, at most 1000. @default 1
   * @returns how each came out
   * @throws FlurryError LIMIT_REACHED where there is room for none
   */
  async fork(id: string, count = 1, { signal }: CallOptions = {}): Promise<VmForkResult[]> {
    const options = { method: "POST" as const, json: { count }, signal };
    return (await this.#transport.json(vmPath(id, "/fork"), VmForkResults, options)).items;
  }

  /** Ends a VM, and all that were forked from it. Returns their ids when they are gone. */
  async kill(id: string, { signal }: CallOptions = {}): Promise<string[]> {
    return (await this.#transport.json(vmPath(id), VmsEnded, { method: "DELETE", signal })).ids;
  }

  /** Runs a program to its end, and gives the first MiB of each of its outputs. */
  exec(id: string, program: VmExecInput, { signal }: CallOptions = {}): Promise<VmExecResult> {
    const options = { method: "POST" as const, json: program, signal };
    return this.#transport.json(vmPath(id, "/exec"), VmExecResult, options);
  }

  /**
   * Runs a program, and gives what it prints as it prints it, and at last its exit. Leaving the loop kills it.
   *
   * @throws FlurryError also what the program was stopped by, such as AGENT_TIMEOUT; GATEWAY_FAILED when the stream
   * ends before the program has
   */
  async *execStream(
    id: string,
    program: VmExecInput,
    { signal }: CallOptions = {},
  ): AsyncGenerator<VmOutput, void, undefined> {
    const headers = { accept: "application/x-ndjson" };
    const options = { method: "POST" as const, json: program, headers, signal };
    const response = await this.#transport.send(vmPath(id, "/exec"), options);
    const body = this.#transport.body(response, { signal, live: true });
    for await (const line of lines(VmExecLine, "output of a program", body)) {
      if ("error" in line) throw failed(line.error);
      if ("exitCode" in line || "signal" in line) {
        yield line;
        return;
      }
      const bytes = "text" in line ? new TextEncoder().encode(line.text) : bytesOf(line.base64);
      yield { stream: line.stream, bytes };
    }
    throw new FlurryError("GATEWAY_FAILED", "The gateway ended the output before the program's end", {
      hint: "it was stopped, or the key was removed; the program has been killed",
    });
  }

  /**
   * @param path - absolute, in the guest
   * @throws FlurryError FILE_NOT_FOUND; the stream itself fails with GATEWAY_UNREACHABLE when it is cut off
   */
  async readFile(id: string, path: string, { signal }: CallOptions = {}): Promise<VmFileContent> {
    const response = await this.#transport.send(vmPath(id, filePath(path)), { signal });
    const mode = Number.parseInt(response.headers.get("flurry-mode") ?? "644", 8);
    return { stream: streamOf(this.#transport.body(response, { signal })), mode };
  }

  /**
   * Writes a file; missing directories are made, and a file of that name is replaced. It is sent once.
   *
   * @param path - absolute, in the guest
   * @param options.mode - permission bits. @default 0o644
   */
  writeFile(
    id: string,
    path: string,
    content: string | Uint8Array | ReadableStream<Uint8Array>,
    { mode, signal }: CallOptions & { mode?: number | undefined } = {},
  ): Promise<VmFileWritten> {
    const stream = content instanceof ReadableStream ? content : streamOf(once(content));
    const query = { mode: mode === undefined ? undefined : (mode & 0o777).toString(8).padStart(3, "0") };
    const options = { method: "PUT" as const, stream, query, signal };
    return this.#transport.json(vmPath(id, filePath(path)), VmFileWritten, options);
  }

  /** Keeps a VM's state under a name. The VM goes on. @throws FlurryError CHECKPOINT_EXISTS */
  checkpoint(id: string, name: string, { signal }: CallOptions = {}): Promise<Checkpoint> {
    const options = { method: "POST" as const, json: { name }, signal };
    return this.#transport.json(vmPath(id, "/checkpoints"), Checkpoint, options);
  }

  checkpoints({ pageSize, signal }: ListOptions = {}): AsyncGenerator<Checkpoint> {
    return itemsOf((cursor) =>
      this.#transport.json("/v1/checkpoints", CheckpointPage, { query: { limit: pageSize, cursor }, signal }),
    );
  }

  getCheckpoint(name: string, { signal }: CallOptions = {}): Promise<Checkpoint> {
    return this.#transport.json(checkpointPath(name), Checkpoint, { signal });
  }

  /** Removes a checkpoint. VMs that were made of it go on. */
  async removeCheckpoint(name: string, { signal }: CallOptions = {}): Promise<void> {
    const response = await this.#transport.send(checkpointPath(name), { method: "DELETE", signal });
    await response.body?.cancel();
  }

  /**
   * What a VM has proven about its identity, signed by the gateway.
   *
   * @throws FlurryError RECEIPT_NOT_FOUND
   */
  receipt(id: string, { signal }: CallOptions = {}): Promise<SignedReceipt> {
    return this.#transport.json(vmPath(id, "/receipt"), SignedReceipt, { signal });
  }
}

function vmPath(id: string, rest = ""): string {
  return `/v1/vms/${encodeURIComponent(id)}${rest}`;
}

function checkpointPath(name: string): string {
  return `/v1/checkpoints/${encodeURIComponent(name)}`;
}

/** @throws FlurryError BAD_ARGUMENT: a URL would lose what such paths say */
function filePath(path: string): string {
  const [first, ...segments] = path.split("/");
  const isWrong = (segment: string) => segment === "" || segment === "." || segment === "..";
  if (first === "" && segments.length > 0 && !segments.some(isWrong)) {
    return `/files/${segments.map(encodeURIComponent).join("/")}`;
  }
  throw new FlurryError("BAD_ARGUMENT", `"${path}" is no path in a VM: it is absolute, without . and ..`);
}

async function* once(content: string | Uint8Array): AsyncGenerator<Uint8Array, void, undefined> {
  yield typeof content === "string" ? new TextEncoder().encode(content) : content;
}

function failed({ code, message, hint }: Extract<VmExecLine, { error: unknown }>["error"]): FlurryError {
  const known = lookupCode(code) ? (code as ErrorCode) : "GATEWAY_FAILED";
  return new FlurryError(known, message, hint === undefined ? {} : { hint });
}

function bytesOf(base64: string): Uint8Array {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}
