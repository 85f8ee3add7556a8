import { Wake } from "../../runtime/jobs/wake.ts";
import type { Script, ScriptedTask } from "./scripted-runtime.ts";

/** Tasks that end when they are told to. */
export class HeldTasks {
  readonly #held = new Map<ScriptedTask, (exitCode: number) => void>();
  readonly #wake = new Wake();

  readonly script: Script = async (task) => {
    const { promise, resolve } = Promise.withResolvers<number>();
    this.#held.set(task, resolve);
    this.#wake.notify();
    return { exitCode: await promise };
  };

  /** Waits until so many are held. */
  async begun(count: number): Promise<void> {
    while (this.#held.size < count) await this.#wake.wait();
  }

  /** Ends all that are held. */
  end(exitCode = 0): void {
    for (const resolve of this.#held.values()) resolve(exitCode);
    this.#held.clear();
  }
}

/** An object with some methods of its own. */
export function withChanges<T extends object>(object: T, changes: Partial<T>): T {
  return new Proxy(object, {
    get(target, name) {
      if (Object.hasOwn(changes, name)) return Reflect.get(changes, name);
      const value: unknown = Reflect.get(target, name, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}
