import { accessSync, chmodSync, chownSync, constants, existsSync, readFileSync, statSync } from "node:fs";
import { codeOf, FlurryError } from "../../errors/errors.ts";
import { isRoot } from "../home.ts";
import type { VmUser } from "./confine.ts";
import type { QemuBinary } from "./qemu-binary.ts";

const DEVICE = "/dev/userfaultfd";
const SYSCTL = "/proc/sys/vm/unprivileged_userfaultfd";

/**
 * Lets VMs have their memory page by page, which needs faults of the kernel to be told to their process
 * (userfaultfd(2)). Where this process is root, the user of the VMs is given the device.
 *
 * @throws FlurryError REQUIREMENT_MISSING saying what to do
 */
export function allowUserfaultfd(qemu: Pick<QemuBinary, "major" | "minor">, user: VmUser | undefined): void {
  if (isAllowedToAll()) return;
  const obstacle = usesDevice(qemu)
    ? deviceObstacle(user)
    : `QEMU ${qemu.major}.${qemu.minor} does not use ${DEVICE}`;
  if (obstacle === undefined) return;
  throw new FlurryError("REQUIREMENT_MISSING", `VMs cannot have their memory page by page: ${obstacle}`, {
    hint: "sysctl vm.unprivileged_userfaultfd=1",
  });
}

/** QEMU knows the device since 8.1; before, it makes the system call. */
function usesDevice({ major, minor }: Pick<QemuBinary, "major" | "minor">): boolean {
  return major > 8 || (major === 8 && minor >= 1);
}

function deviceObstacle(user: VmUser | undefined): string | undefined {
  if (!existsSync(DEVICE)) return `there is no ${DEVICE} (Linux 6.1 and later have it)`;
  if (user) {
    const { gid, mode } = statSync(DEVICE);
    if ((mode & 0o006) === 0o006 || (gid === user.gid && (mode & 0o060) === 0o060)) return undefined;
    chownSync(DEVICE, 0, user.gid);
    chmodSync(DEVICE, 0o660);
    return undefined;
  }
  // Root without a user for its VMs.
  if (isRoot()) return undefined;
  try {
    accessSync(DEVICE, constants.R_OK | constants.W_OK);
    return undefined;
  } catch (error) {
    if (codeOf(error) !== "EACCES" && codeOf(error) !== "EPERM") throw error;
    return `${DEVICE} does not open for this user`;
  }
}

function isAllowedToAll(): boolean {
  return existsSync(SYSCTL) && readFileSync(SYSCTL, "utf8").trim() === "1";
}
