import { describe, expect, test } from "bun:test";
import { spawnSync } from "node:child_process";
import { once } from "node:events";
import { existsSync, readlinkSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import {
  canLimitRate,
  canMakeHosts,
  canShape,
  type NetworkHost,
  namespaceNames,
  networkHosts,
} from "../support/network-hosts.ts";
import { temporaryDirectory } from "../support/vm.ts";

const MIB = 1024 * 1024;
const TEST_MS = 60_000;

/** A program on a host, spoken to by lines. */
interface Program {
  pid: number;
  say(line: string): void;
  line(): Promise<string>;
}

function start(host: NetworkHost, source: string): Program {
  const child = host.exec([process.execPath, "-e", `import * as net from "node:net";\n${source}`]);
  let stderr = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    stderr += text;
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  return {
    pid: child.pid!,
    say: (line) => child.stdin.write(`${line}\n`),
    line: async () => {
      const { value, done } = await lines.next();
      if (done) throw new Error(`The program ended: ${stderr}`);
      return value;
    },
  };
}

/** Sends back what it gets; returns its port. */
async function echo(host: NetworkHost, address = host.address): Promise<number> {
  const server = start(
    host,
    `const server = net.createServer((socket) => socket.pipe(socket));
    server.listen(0, "${address}", () => console.log(server.address().port));`,
  );
  return Number(await server.line());
}

/** Sends each line that it is told to an echo, and prints what comes back. */
function client(host: NetworkHost, address: string, port: number): Program {
  return start(
    host,
    `const socket = net.connect(${port}, "${address}", () => console.log("connected"));
    socket.on("error", (error) => console.log(error.code));
    process.stdin.pipe(socket).pipe(process.stdout);`,
  );
}

/** Milliseconds until so many bytes are at the other end. */
async function transferMs(from: NetworkHost, to: NetworkHost, bytes: number): Promise<number> {
  const server = start(
    to,
    `const server = net.createServer((socket) => {
      let got = 0;
      socket.on("data", (data) => {
        got += data.length;
        if (got === ${bytes}) socket.end("all");
      });
    });
    server.listen(0, "${to.address}", () => console.log(server.address().port));`,
  );
  const port = Number(await server.line());
  const sender = start(
    from,
    `const socket = net.connect(${port}, "${to.address}", () => {
      const began = performance.now();
      socket.write(Buffer.alloc(${bytes}, 1));
      socket.on("data", () => console.log(performance.now() - began));
    });`,
  );
  return Number(await sender.line());
}

/** Times that the sender of a host's only connection has tried in vain, as the kernel counts them. */
function retransmissions(host: NetworkHost): number {
  const [program, ...args] = host.command(["ss", "-tnoH", "state", "established"]);
  const { stdout } = spawnSync(program!, args, { encoding: "utf8" });
  return Number(/timer:\(on,[^,]*,(\d+)\)/.exec(stdout)?.[1] ?? 0);
}

/** Whether a process runs. One that has ended may wait for its parent to take note. */
function runs(pid: number): boolean {
  return existsSync(`/proc/${pid}/exe`);
}

function interfaces(): string[] {
  const links = JSON.parse(spawnSync("ip", ["-json", "link"], { encoding: "utf8" }).stdout);
  return links.map((link: { ifname: string }) => link.ifname);
}

describe.if(canMakeHosts)("networkHosts()", () => {
  test(
    "makes hosts that reach one another",
    async () => {
      await using network = await networkHosts(3);
      const { hosts } = network;
      expect(new Set(hosts.map(({ address }) => address)).size).toBe(3);
      const ports = await Promise.all(hosts.map((host) => echo(host)));
      for (const from of hosts) {
        for (const [index, to] of hosts.entries()) {
          const program = client(from, to.address, ports[index]!);
          expect(await program.line()).toBe("connected");
          program.say(`from ${from.address} to ${to.address}`);
          expect(await program.line()).toBe(`from ${from.address} to ${to.address}`);
        }
      }
    },
    TEST_MS,
  );

  test(
    "gives each host a loopback of its own",
    async () => {
      await using network = await networkHosts(2);
      const [a, b] = network.hosts as [NetworkHost, NetworkHost];
      const port = await echo(a, "127.0.0.1");
      expect(await client(a, "127.0.0.1", port).line()).toBe("connected");
      expect(await client(b, "127.0.0.1", port).line()).toBe("ECONNREFUSED");
      expect(await client(b, a.address, port).line()).toBe("ECONNREFUSED");
    },
    TEST_MS,
  );

  test(
    "shares file systems, unix sockets and process ids with this machine",
    async () => {
      await using network = await networkHosts(1);
      const [host] = network.hosts as [NetworkHost];
      using directory = temporaryDirectory();
      const path = join(directory.path, "socket");
      await using server = createServer((socket) => socket.end("hello\n")).listen(path);
      await once(server, "listening");
      const program = start(
        host,
        `net.connect("${path}").on("data", (data) => process.stdout.write(data));
        setInterval(() => undefined, 1e6);`,
      );
      expect(await program.line()).toBe("hello");
      const namespaceOf = (pid: number, kind: string) => readlinkSync(`/proc/${pid}/ns/${kind}`);
      for (const kind of ["mnt", "pid", "ipc"]) {
        expect(namespaceOf(program.pid, kind)).toBe(namespaceOf(process.pid, kind));
      }
      expect(namespaceOf(program.pid, "net")).not.toBe(namespaceOf(process.pid, "net"));
    },
    TEST_MS,
  );

  test(
    "has links that stall what is under way when they are down, and let it go on when they are up",
    async () => {
      await using network = await networkHosts(2);
      const [a, b] = network.hosts as [NetworkHost, NetworkHost];
      const program = client(a, b.address, await echo(b));
      expect(await program.line()).toBe("connected");
      for (const link of [a.link, b.link]) {
        await link.down();
        program.say("anybody there");
        let answered = false;
        const answer = program.line().then((line) => {
          answered = true;
          return line;
        });
        while (retransmissions(a) < 2) await new Promise((resolve) => setImmediate(resolve));
        expect(answered).toBe(false);
        await link.up();
        expect(await answer).toBe("anybody there");
      }
    },
    TEST_MS,
  );

  test.if(canShape)(
    "has links that delay what passes",
    async () => {
      await using network = await networkHosts(2);
      const [a, b] = network.hosts as [NetworkHost, NetworkHost];
      const program = client(a, b.address, await echo(b));
      expect(await program.line()).toBe("connected");
      const roundTripsMs = async () => {
        const began = performance.now();
        for (let trip = 0; trip < 10; trip++) {
          program.say("ping");
          expect(await program.line()).toBe("ping");
        }
        return performance.now() - began;
      };
      const before = await roundTripsMs();
      await a.link.delay(50);
      const delayed = await roundTripsMs();
      expect(delayed).toBeGreaterThan(10 * 2 * 50);
      expect(delayed).toBeGreaterThan(4 * before);
      await a.link.delay(0);
      expect(await roundTripsMs()).toBeLessThan(delayed / 4);
    },
    TEST_MS,
  );

  test.if(canShape)(
    "has links that lose what passes, and connections that make up for it",
    async () => {
      await using network = await networkHosts(2);
      const [a, b] = network.hosts as [NetworkHost, NetworkHost];
      await a.link.loss(5);
      expect(await transferMs(a, b, MIB)).toBeGreaterThan(0);
      await a.link.loss(0);
    },
    TEST_MS,
  );

  test.skipIf(canShape)("has links that say so when the kernel cannot delay", async () => {
    await using network = await networkHosts(1);
    const { link } = network.hosts[0]!;
    expect(link.delay(1)).rejects.toThrow("no netem");
    expect(link.loss(1)).rejects.toThrow("no netem");
    await link.delay(0);
  });

  test.if(canLimitRate)(
    "has links of a limited rate",
    async () => {
      await using network = await networkHosts(2);
      const [a, b] = network.hosts as [NetworkHost, NetworkHost];
      const before = await transferMs(a, b, 2 * MIB);
      await b.link.rate(16);
      const limited = await transferMs(a, b, 2 * MIB);
      // 2 MiB at 16 Mbit/s, but for what goes through at once.
      expect(limited).toBeGreaterThan(800);
      expect(limited).toBeGreaterThan(3 * before);
      await b.link.rate(undefined);
      expect(await transferMs(a, b, 2 * MIB)).toBeLessThan(limited / 3);
    },
    TEST_MS,
  );

  test(
    "leaves nothing",
    async () => {
      const before = { namespaces: await namespaceNames(), interfaces: interfaces() };
      let pids: number[];
      {
        await using network = await networkHosts(2);
        expect(interfaces()).toEqual(before.interfaces);
        expect(await namespaceNames()).toHaveLength(before.namespaces.length + 3);
        pids = await Promise.all(network.hosts.map(startDaemon));
        expect(pids.every(runs)).toBe(true);
        await network.hosts[0]!.link.down();
      }
      expect(await namespaceNames()).toEqual(before.namespaces);
      expect(interfaces()).toEqual(before.interfaces);
      expect(pids.filter(runs)).toEqual([]);
    },
    TEST_MS,
  );

  test(
    "removes what a killed test has left",
    async () => {
      const support = join(import.meta.dirname, "../support/network-hosts.ts");
      const before = await namespaceNames();
      const source = `
        import { networkHosts } from ${JSON.stringify(support)};
        const { hosts } = await networkHosts(2);
        const child = hosts[1].exec(["sleep", "100000"]);
        process.stdout.write(child.pid + "\\n");`;
      const { stdout } = spawnSync(
        "sh",
        [
          "-c",
          `"$0" -e "$1" | { read -r pid; echo "$pid"; kill -KILL "$(cut -d" " -f4 "/proc/$pid/stat")"; }`,
          process.execPath,
          source,
        ],
        { encoding: "utf8" },
      );
      const pid = Number(stdout);
      expect(runs(pid)).toBe(true);
      expect(await namespaceNames()).toHaveLength(before.length + 3);
      {
        await using network = await networkHosts(1);
        expect(await namespaceNames()).toHaveLength(before.length + 2);
        expect(network.hosts).toHaveLength(1);
        expect(runs(pid)).toBe(false);
      }
      expect(await namespaceNames()).toEqual(before);
    },
    TEST_MS,
  );
});

/** A process that is no longer a child of this one. */
async function startDaemon(host: NetworkHost): Promise<number> {
  const child = host.exec(["sh", "-c", "setsid sleep 100000 >/dev/null 2>&1 </dev/null & echo $!"]);
  const [pid] = await once(child.stdout, "data");
  return Number(pid);
}
