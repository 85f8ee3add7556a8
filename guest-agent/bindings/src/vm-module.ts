import * as vm from "./vm.ts";

/** Has Bun find `flurry:vm`. In the guest it is preloaded by every Bun program, and a part of the worker-host. */
export function offerVmModule(): void {
  const { isForking: _isForking, ...exports } = vm;
  Bun.plugin({
    name: "flurry:vm",
    setup(build) {
      build.module("flurry:vm", () => ({ exports, loader: "object" }));
    },
  });
}
