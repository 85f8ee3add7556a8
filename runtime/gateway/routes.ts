import type { GatewayApp } from "./app.ts";
import { artifactRoutes } from "./artifact-routes.ts";
import { checkpointRoutes } from "./checkpoint-routes.ts";
import type { GatewayContext } from "./context.ts";
import { deliveriesRoutes } from "./deliveries-routes.ts";
import { docsRoutes } from "./docs-routes.ts";
import { healthRoutes } from "./health-routes.ts";
import { hostsRoutes } from "./hosts-routes.ts";
import { jobStreamRoutes } from "./job-stream-routes.ts";
import { jobsRoutes } from "./jobs-routes.ts";
import { keysRoutes } from "./keys-routes.ts";
import { receiptRoutes } from "./receipt-routes.ts";
import { secretsRoutes } from "./secrets-routes.ts";
import { submitRoutes } from "./submit-routes.ts";
import { vmExecRoutes } from "./vm-exec-routes.ts";
import { vmFileRoutes } from "./vm-file-routes.ts";
import { vmsRoutes } from "./vms-routes.ts";
import { workerLogsRoutes } from "./worker-logs-routes.ts";
import { workerScheduledRoutes } from "./worker-scheduled-routes.ts";
import { workerStateRoutes } from "./worker-state-routes.ts";
import { workersRoutes } from "./workers-routes.ts";

/** All that a gateway answers, in the order of its documentation. */
export function gatewayRoutes(context: GatewayContext): GatewayApp[] {
  return [
    submitRoutes(context),
    jobsRoutes(context),
    jobStreamRoutes(context),
    artifactRoutes(context),
    deliveriesRoutes(context),
    workersRoutes(context),
    workerStateRoutes(context),
    workerLogsRoutes(context),
    workerScheduledRoutes(context),
    secretsRoutes(context),
    keysRoutes(context),
    vmsRoutes(context),
    vmExecRoutes(context),
    vmFileRoutes(context),
    checkpointRoutes(context),
    receiptRoutes(context),
    hostsRoutes(context),
    healthRoutes(context),
    docsRoutes(),
  ];
}
