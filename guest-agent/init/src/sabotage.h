/* Tests have agents that do not do what they should; the product's have no trace of it. In a build with
 * FL_SABOTAGE the host name that such an agent is given says what: sabotage-skip-STEP-…, which leaves a step
 * out, sabotage-lie-STEP-…, which also says that it was done, and sabotage-stall-STEP-…, which never answers. */
#ifndef FLURRY_SABOTAGE_H
#define FLURRY_SABOTAGE_H

#ifdef FL_SABOTAGE
#include <stdbool.h>
bool sabotages(const char *mode, const char *step);
#define SKIPS(step) (sabotages("skip", step) || sabotages("lie", step))
#define LIES(step) sabotages("lie", step)
#define STALLS(step) sabotages("stall", step)
#else
#define SKIPS(step) false
#define LIES(step) false
#define STALLS(step) false
#endif

#endif
