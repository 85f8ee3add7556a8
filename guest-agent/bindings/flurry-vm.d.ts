/** Fork calls for programs in a VM: docs/fork-calls.md. */
declare module "flurry:vm" {
  export {
    type CallOptions,
    type Child,
    checkpointParent,
    clone,
    createClones,
    ended,
    exit,
    FlurryError,
    type Forked,
    fork,
    identity,
    join,
    kill,
    nextChild,
    requestTicket,
    type Ticket,
    type Vm,
  } from "./src/vm.ts";
}
