/** One thing that every child must have anew, such as the state of a random generator. */
type RenewStep = (seed: Uint8Array) => void | Promise<void>;

const steps: readonly RenewStep[] = [];

/**
 * Renews what a fork must not have copied. Called in a child before any code of the worker runs.
 *
 * @param seed - random bytes of this child's own
 */
export async function renew(seed: Uint8Array): Promise<void> {
  for (const step of steps) await step(seed);
}
