import * as vm from "./vm.ts";

/** Has workers find `flurry:vm`. Other programs of the guest have it as a package: runtime/workers/js/js-image.ts. */
export function offerVmModule(): void {
  const { isForking: _isForking, isForked: _isForked, ...exports } = vm;
  Bun.plugin({
    name: "flurry:vm",
    setup(build) {
      build.module("flurry:vm", () => ({ exports, loader: "object" }));
    },
  });
}
