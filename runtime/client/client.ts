import { HostsApi, KeysApi, SecretsApi } from "./admin.ts";
import { JobsApi } from "./jobs.ts";
import { type ClientOptions, Transport } from "./transport.ts";
import { VmsApi } from "./vms.ts";
import { WorkersApi } from "./workers.ts";

/**
 * A gateway, typed. Answers are checked by the schemas of the API; problems are thrown as FlurryError with
 * their code. Requests that may be repeated are, a few times, when the gateway is busy or cannot be reached.
 *
 * @example
 * const client = new FlurryClient({ url: "http://127.0.0.1:8787" });
 * const { job } = await client.jobs.submit({
 *   worker: { image: "base", command: ["sh", "-c", "echo $FLURRY_TASK_INDEX"] },
 *   tasks: { count: 8 },
 * });
 * for await (const result of client.jobs.results(job.id, { follow: true })) console.log(result.stdout);
 */
export class FlurryClient {
  readonly jobs: JobsApi;
  readonly workers: WorkersApi;
  readonly keys: KeysApi;
  readonly secrets: SecretsApi;
  readonly hosts: HostsApi;
  readonly vms: VmsApi;
  /** Where it asks. */
  readonly url: string;

  /** @throws FlurryError BAD_ARGUMENT for a URL that is none of HTTP */
  constructor(options: ClientOptions) {
    const transport = new Transport(options);
    this.url = transport.url;
    this.jobs = new JobsApi(transport);
    this.workers = new WorkersApi(transport);
    this.keys = new KeysApi(transport);
    this.secrets = new SecretsApi(transport);
    this.hosts = new HostsApi(transport);
    this.vms = new VmsApi(transport);
  }
}
