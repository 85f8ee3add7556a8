import type { ParentProgress } from "../fork/open-parent.ts";

/** Says in words what a parent is doing; undefined for what is no news. */
export function stepText(event: ParentProgress): string | undefined {
  switch (event.step) {
    case "probe":
      return "trying whether guests boot under KVM";
    case "boot":
      return "booting";
    case "console":
      return undefined;
    case "files":
      return "putting files in";
    case "warm-up":
      return "warming up";
    case "prepare":
      return "loading the worker";
    case "freeze":
      return "freezing";
    case "keep":
      return "keeping the frozen parent on disk";
    case "ask":
      return `asking other hosts for it: ${event.peers.join(", ")}`;
    case "remote":
      return `opening the frozen parent of ${event.holders.join(", ")}`;
    case "peers-failed":
      return `cannot use another host's parent: ${event.reason}`;
    case "damaged":
      return `making another parent: ${event.reason}`;
    case "cached":
      return "opening the frozen parent";
  }
}
