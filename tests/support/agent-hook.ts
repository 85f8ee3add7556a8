import { connect, type Socket } from "node:net";
import { join } from "node:path";
import type { AgentUnderTest } from "./agent-process.ts";

/** This process as one with a fork hook: it says whatever the test wants, line by line. */
export class ScriptedHook implements Disposable {
  readonly socket: Socket;
  readonly #lines: string[] = [];
  #text = "";
  #hasEnded = false;
  #arrived = Promise.withResolvers<void>();

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("error", () => undefined); // a reset is what some tests are after
    socket.on("data", (chunk) => {
      const lines = `${this.#text}${chunk}`.split("\n");
      this.#text = lines.pop()!;
      this.#lines.push(...lines);
      this.#arrived.resolve();
    });
    socket.on("close", () => {
      this.#hasEnded = true;
      this.#arrived.resolve();
    });
  }

  static async connect(agent: AgentUnderTest): Promise<ScriptedHook> {
    const socket = connect(join(agent.root, "run/flurry/fork.sock"));
    const hook = new ScriptedHook(socket);
    const { promise, resolve } = Promise.withResolvers<void>();
    socket.once("connect", resolve);
    socket.once("close", resolve); // an agent without a place for it may hang up before that news is here
    await promise;
    return hook;
  }

  /** The other end: this process as the agent. */
  static over(socket: Socket): ScriptedHook {
    return new ScriptedHook(socket);
  }

  /** Connects and registers. */
  static async register(agent: AgentUnderTest, name: string): Promise<ScriptedHook> {
    const hook = await ScriptedHook.connect(agent);
    hook.say(`hook ${name} ${process.pid}`);
    const answer = await hook.next();
    if (answer !== "ok") throw new Error(`Not registered: ${answer}`);
    return hook;
  }

  say(line: string): void {
    this.socket.write(`${line}\n`);
  }

  /** The next line; undefined at the end of the connection. */
  async next(): Promise<string | undefined> {
    while (this.#lines.length === 0 && !this.#hasEnded) {
      await this.#arrived.promise;
      this.#arrived = Promise.withResolvers<void>();
    }
    return this.#lines.shift();
  }

  [Symbol.dispose](): void {
    this.socket.destroy();
  }
}
