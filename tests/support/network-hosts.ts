import { type ChildProcessWithoutNullStreams, execFile, spawn, spawnSync } from "node:child_process";
import { promisify } from "node:util";
import { isRoot } from "../../runtime/home.ts";
import { ownerName, startTimeOf } from "../../runtime/vm/owner.ts";

/** Begins the names of network namespaces of tests; those of their owner follow. */
const PREFIX = "flurry-t-";
/** Where iproute2 keeps the names of network namespaces. */
const NAMESPACES = "/run/netns";
/** Milliseconds that killed processes get to vanish. */
const REAP_DEADLINE_MS = 10_000;
/** What a link that limits its rate holds back before it drops: `tc-tbf(8)`. */
const TBF_BUFFER = ["burst", "64kb", "latency", "100ms"];

/**
 * Runs a shell script in a network namespace without a name, which goes with it: whether this kernel
 * and this user can do what it does.
 */
function canDo(script: string): boolean {
  return isRoot() && spawnSync("unshare", ["--net", "sh", "-c", script], { stdio: "ignore" }).status === 0;
}

/** Whether hosts can be had here: root, network namespaces, veth pairs and a bridge, iproute2 and nsenter. */
export const canMakeHosts = canDo(
  "set -e; ip link add port type veth peer name eth0; ip link add switch type bridge; nsenter --version",
);
/** Whether links can have a delay and a loss: netem is in the kernel. */
export const canShape = canMakeHosts && canDo("ip link set lo up; tc qdisc add dev lo root netem delay 1ms");
/** Whether links can have a rate: by netem, or by tbf. */
export const canLimitRate =
  canShape || (canMakeHosts && canDo(`tc qdisc add dev lo root tbf rate 1mbit ${TBF_BUFFER.join(" ")}`));

/** Hosts of a network of their own. Their processes are killed, and the network is gone, at the disposal. */
export interface NetworkHosts extends AsyncDisposable {
  hosts: NetworkHost[];
}

let sequence = 0;

/**
 * Makes hosts on one network: network namespaces, each with a loopback of its own and a link to a switch
 * that connects them all, and nothing else. They share this machine's file systems, unix sockets and
 * process ids. What test processes that were killed have left of theirs is removed first.
 *
 * @throws Error when `canMakeHosts` is false
 */
export async function networkHosts(count: number): Promise<NetworkHosts> {
  await reapLeftovers();
  const name = `${PREFIX}${ownerName(process.pid, startTimeOf(process.pid)!, sequence++)}`;
  await using stack = new AsyncDisposableStack();
  const bridge = stack.use(await Namespace.make(`${name}-switch`));
  await bridge.ip("link add bridge type bridge", "link set bridge up");
  const hosts: NetworkHost[] = [];
  for (let index = 0; index < count; index++) {
    const namespace = stack.use(await Namespace.make(`${name}-${index}`));
    const [port, address] = [`port${index}`, `10.99.0.${index + 1}`];
    // Made where they belong: the machine's own network never sees them, and their names may be short.
    await bridge.ip(
      `link add ${port} type veth peer name eth0 netns ${namespace.name}`,
      `link set ${port} master bridge`,
      `link set ${port} up`,
    );
    await namespace.ip("link set lo up", `address add ${address}/24 dev eth0`, "link set eth0 up");
    hosts.push(new NetworkHost(namespace, address, new NetworkLink(namespace, bridge, port)));
  }
  const owned = stack.move();
  return { hosts, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}

export interface HostExecOptions {
  /** @default that of this process */
  env?: NodeJS.ProcessEnv | undefined;
  cwd?: string | undefined;
}

/** A host of a test: this machine with another network. */
export class NetworkHost {
  /** Name of the network namespace. */
  readonly name: string;
  /** IPv4 address that the other hosts reach it at. */
  readonly address: string;
  /** To the switch, and so to all other hosts. */
  readonly link: NetworkLink;
  readonly #namespace: Namespace;

  constructor(namespace: Namespace, address: string, link: NetworkLink) {
    this.name = namespace.name;
    this.address = address;
    this.link = link;
    this.#namespace = namespace;
  }

  /** The command line that runs a program on this host. The program takes the place of its first process. */
  command(argv: readonly string[]): string[] {
    // Not `ip netns exec`, which gives it a mount namespace with another /sys.
    return ["nsenter", `--net=${NAMESPACES}/${this.name}`, "--", ...argv];
  }

  /** Starts a program on this host. It is killed with the host if it has not ended. */
  exec(argv: readonly string[], options: HostExecOptions = {}): ChildProcessWithoutNullStreams {
    const [program, ...args] = this.command(argv);
    const child = spawn(program!, args, { ...options, stdio: "pipe" });
    this.#namespace.own(child);
    return child;
  }
}

/** The cable of one host: what is set holds for what it sends and for what it receives. */
export class NetworkLink {
  readonly #host: Namespace;
  readonly #bridge: Namespace;
  readonly #port: string;
  #shape: Shape = { delayMs: 0, lossPercent: 0, mbit: undefined };

  constructor(host: Namespace, bridge: Namespace, port: string) {
    this.#host = host;
    this.#bridge = bridge;
    this.#port = port;
  }

  /** Milliseconds that each packet takes longer. 0 undoes it. Needs `canShape`. */
  async delay(ms: number): Promise<void> {
    await this.#set({ delayMs: ms });
  }

  /** Share of packets that are lost. 0 undoes it. Needs `canShape`. */
  async loss(percent: number): Promise<void> {
    await this.#set({ lossPercent: percent });
  }

  /** Megabits per second that pass; undefined undoes it. Needs `canLimitRate`. */
  async rate(mbit: number | undefined): Promise<void> {
    await this.#set({ mbit });
  }

  /**
   * Lets nothing pass. Nobody is told, as when a cable is pulled behind the next switch: packets vanish,
   * the host keeps its carrier, its address and what listens on it.
   */
  async down(): Promise<void> {
    await this.#bridge.ip(`link set ${this.#port} nomaster`);
  }

  async up(): Promise<void> {
    await this.#bridge.ip(`link set ${this.#port} master bridge`);
  }

  async #set(change: Partial<Shape>): Promise<void> {
    const shape = { ...this.#shape, ...change };
    const discipline = disciplineOf(shape);
    this.#shape = shape;
    for (const [namespace, device] of [
      [this.#host, "eth0"],
      [this.#bridge, this.#port],
    ] as const) {
      if (discipline) await namespace.tc("replace", device, discipline);
      // A link without a discipline has none to delete.
      else if (await namespace.isShaped(device)) await namespace.tc("delete", device, []);
    }
  }
}

interface Shape {
  delayMs: number;
  lossPercent: number;
  mbit: number | undefined;
}

/** The queueing discipline for a link, as `tc` takes it; undefined for none. */
function disciplineOf({ delayMs, lossPercent, mbit }: Shape): string[] | undefined {
  const netem = [
    ...(delayMs > 0 ? ["delay", `${delayMs}ms`] : []),
    ...(lossPercent > 0 ? ["loss", `${lossPercent}%`] : []),
  ];
  const rate = mbit === undefined ? [] : ["rate", `${mbit}mbit`];
  if (netem.length + rate.length === 0) return undefined;
  // Room for what is under way on a fast link: netem drops what exceeds 1000 packets.
  if (canShape) return ["netem", "limit", "100000", ...netem, ...rate];
  if (netem.length === 0) return ["tbf", ...rate, ...TBF_BUFFER];
  throw new Error("This kernel has no netem: links have neither a delay nor a loss");
}

/** A named network namespace. */
class Namespace implements AsyncDisposable {
  readonly name: string;
  readonly #children = new Set<ChildProcessWithoutNullStreams>();

  private constructor(name: string) {
    this.name = name;
  }

  static async make(name: string): Promise<Namespace> {
    await tool("ip", ["netns", "add", name]);
    return new Namespace(name);
  }

  /** Commands of `ip` in this namespace. */
  async ip(...commands: string[]): Promise<void> {
    for (const command of commands) await tool("ip", ["-n", this.name, ...command.split(" ")]);
  }

  async tc(verb: "replace" | "delete", device: string, discipline: readonly string[]): Promise<void> {
    await tool("tc", ["-n", this.name, "qdisc", verb, "dev", device, "root", ...discipline]);
  }

  /** Whether a device has a discipline that somebody has set. */
  async isShaped(device: string): Promise<boolean> {
    const shown = await tool("tc", ["-n", this.name, "qdisc", "show", "dev", device]);
    return /^qdisc (netem|tbf) /m.test(shown);
  }

  /** Takes a child of this process that is killed with the namespace. */
  own(child: ChildProcessWithoutNullStreams): void {
    this.#children.add(child);
    child.once("exit", () => this.#children.delete(child));
    child.once("error", () => this.#children.delete(child));
    // What is written to a process that has ended is lost; its end says so already.
    child.stdin.on("error", () => undefined);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const children = [...this.#children];
    const ended = children.map((child) => new Promise((resolve) => child.once("exit", resolve)));
    for (const child of children) child.kill("SIGKILL");
    await Promise.all(ended);
    await removeNamespace(this.name);
  }
}

/** Removes hosts of test processes that are dead, and kills what still runs on them. */
async function reapLeftovers(): Promise<void> {
  for (const name of (await namespaceNames()).filter(isDead)) {
    try {
      await removeNamespace(name);
    } catch (error) {
      // Another test may have found it at the same time.
      if ((await namespaceNames()).includes(name)) throw error;
    }
  }
}

/** Names of the network namespaces of tests, dead or alive. */
export async function namespaceNames(): Promise<string[]> {
  const shown = await tool("ip", ["netns", "list"]);
  // A line may go on with an id: "NAME (id: 0)".
  const names = shown.split("\n").map((line) => line.split(" ")[0]!);
  return names.filter((name) => name.startsWith(PREFIX));
}

/** Whether the owner that a name tells is dead. Of owners in other PID namespaces nobody here knows. */
function isDead(name: string): boolean {
  const [space, pid, startTime] = name.slice(PREFIX.length).split("-");
  const own = ownerName(0, "0", 0).split("-")[0];
  return space === own && startTimeOf(Number(pid)) !== startTime;
}

/** A namespace without a name would live on with the processes in it: they go first. */
async function removeNamespace(name: string): Promise<void> {
  const deadline = performance.now() + REAP_DEADLINE_MS;
  for (;;) {
    const pids = (await tool("ip", ["netns", "pids", name])).split("\n").filter((line) => line !== "");
    if (pids.length === 0) break;
    if (performance.now() > deadline) throw new Error(`Processes ${pids.join(", ")} of ${name} do not die`);
    for (const pid of pids) kill(Number(pid));
  }
  await tool("ip", ["netns", "delete", name]);
}

function kill(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (error) {
    // It has ended since.
    if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
  }
}

async function tool(program: string, args: readonly string[]): Promise<string> {
  return (await promisify(execFile)(program, args)).stdout;
}
