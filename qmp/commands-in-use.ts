/** What the project uses of a command. */
export interface CommandUse {
  /** The arguments in use; each must exist in every QEMU that is supported. */
  arguments: readonly string[];
  /** Those among them that are always sent, since some supported QEMU requires them. */
  always?: readonly string[];
  /** Called out of band. */
  oob?: true;
}

/**
 * Every command that the project sends. The generated types hold nothing else, so a command or an
 * argument that is missing here does not compile, and what is here is checked against the
 * installed QEMU. After a change: `bun qmp/generate.ts`.
 */
export const commandsInUse: Readonly<Record<string, CommandUse>> = {
  qmp_capabilities: { arguments: ["enable"] },
  "query-status": { arguments: [] },
  "query-version": { arguments: [] },
  "query-commands": { arguments: [] },
  "query-qmp-schema": { arguments: [] },
  stop: { arguments: [] },
  cont: { arguments: [] },
  quit: { arguments: [] },
  system_powerdown: { arguments: [] },
  "xen-save-devices-state": { arguments: ["filename", "live"] },
  "migrate-set-capabilities": { arguments: ["capabilities"] },
  "migrate-incoming": { arguments: ["uri"], always: ["uri"] },
  migrate: { arguments: ["uri", "resume"], always: ["uri"] },
  "query-migrate": { arguments: [] },
  "migrate-recover": { arguments: ["uri"], oob: true },
  "query-cpus-fast": { arguments: [] },
  "query-kvm": { arguments: [] },
  "query-memdev": { arguments: [] },
  "set-action": { arguments: ["reboot", "shutdown", "panic", "watchdog"] },
};

/** Every event that the project waits for. */
export const eventsInUse: readonly string[] = [
  "RESUME",
  "STOP",
  "SHUTDOWN",
  "MIGRATION",
  "RESET",
  "POWERDOWN",
  "GUEST_PANICKED",
  "VSERPORT_CHANGE",
];
