/**
 * The rooms and who may enter whom (docs/architecture.md). Arrows run downwards only. Each room lists
 * what it may import of the project; all else of the project is forbidden.
 */
const project = "^(errors|qmp|memserver|guest-agent|runtime|tests|bench|examples)/";
/** Files of runtime/ that every room of runtime/ may use. */
const shared = "^runtime/[^/]+\\.(ts|txt)$";

const rooms = {
  errors: [],
  qmp: [],
  "guest-agent/protocol": [],
  "guest-agent/init": ["errors"],
  "guest-agent/bindings": ["errors", "guest-agent/init"],
  "guest-agent/image": ["errors", "guest-agent/init", "guest-agent/bindings"],
  "guest-agent/worker-host": ["guest-agent/protocol", "guest-agent/bindings"],
  memserver: ["errors", "qmp"],
  "runtime/net": ["errors"],
  "runtime/vm": ["errors", "qmp"],
  "runtime/fork": ["errors", "qmp", "memserver", "guest-agent/protocol", "runtime/vm"],
  "runtime/api": ["errors"],
  "runtime/jobs": ["errors", "guest-agent/protocol", "runtime/api", "runtime/vm", "runtime/fork"],
  "runtime/workers": [
    ...["errors", "guest-agent", "runtime/net", "runtime/api", "runtime/vm", "runtime/fork", "runtime/jobs"],
  ],
  "runtime/store": ["errors", "runtime/api", "runtime/jobs"],
  "runtime/gateway": [
    ...["errors", "runtime/net", "runtime/api", "runtime/workers", "runtime/jobs", "runtime/store"],
  ],
  "runtime/client": ["errors", "runtime/api"],
  "runtime/adapters": ["errors"],
};

function roomRule(room, allowed) {
  const own = [`^${room}/`, ...allowed.map((name) => `^${name}/`)];
  if (room.startsWith("runtime/")) own.push(shared, "^runtime/adapters/");
  return {
    name: `room-${room}`,
    comment: `${room}/ may import of the project: ${[room, ...allowed].join(", ")}`,
    severity: "error",
    from: { path: `^${room}/` },
    to: { path: project, pathNot: own },
  };
}

module.exports = {
  forbidden: [
    ...Object.entries(rooms).map(([room, allowed]) => roomRule(room, allowed)),
    {
      name: "qmp-and-protocol-stand-alone",
      comment: "They are libraries of their own: node's modules, and msgpackr for the protocol",
      severity: "error",
      from: { path: "^(qmp|guest-agent/protocol)/" },
      to: {
        dependencyTypes: ["npm", "npm-dev", "npm-optional", "npm-peer", "npm-no-pkg"],
        pathNot: "node_modules/msgpackr/",
      },
    },
    {
      name: "qmp-has-no-codec",
      severity: "error",
      from: { path: "^qmp/" },
      to: { path: "node_modules/msgpackr/" },
    },
    {
      name: "shared-files-know-no-room",
      severity: "error",
      from: { path: shared },
      to: { path: project, pathNot: ["^errors/", shared] },
    },
    {
      name: "nothing-imports-the-cli",
      severity: "error",
      from: { path: project, pathNot: ["^runtime/cli/", "^tests/"] },
      to: { path: "^runtime/cli/" },
    },
    {
      name: "product-imports-no-tests",
      severity: "error",
      from: { path: project, pathNot: "^tests/" },
      to: { path: "^tests/" },
    },
    { name: "no-cycles", severity: "error", from: {}, to: { circular: true } },
    {
      name: "no-unresolved",
      severity: "error",
      from: {},
      to: { couldNotResolve: true, pathNot: "^(bun|flurry):" },
    },
  ],
  options: {
    parser: "tsc",
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
    doNotFollow: { path: "node_modules" },
    enhancedResolveOptions: {
      extensions: [".ts", ".js", ".mjs", ".cjs", ".json"],
      exportsFields: ["exports"],
      conditionNames: ["import", "node", "default"],
    },
  },
};
