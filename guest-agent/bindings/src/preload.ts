import { offerVmModule } from "./vm-module.ts";

offerVmModule();
