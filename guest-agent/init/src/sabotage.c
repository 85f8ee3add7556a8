#ifdef FL_SABOTAGE
#include <stdio.h>
#include <string.h>

#include "agent.h"

char sabotage[80];

bool sabotages(const char *mode, const char *step) {
  char start[80];
  snprintf(start, sizeof start, "sabotage-%s-%s-", mode, step);
  return strncmp(sabotage, start, strlen(start)) == 0;
}

static void copy(char *to, size_t size, const struct view *from) {
  snprintf(to, size, "%.*s", (int)from->len, from->p);
}

/* Says of what was left out that it was done. */
void sabotage_lies(const struct msg *m, struct ids *ids) {
  if (LIES("index")) ids->index = m->index;
  if (LIES("vmid")) copy(ids->vm_id, sizeof ids->vm_id, &m->vm_id);
  if (LIES("ssh")) {
    copy(ids->ssh_key, sizeof ids->ssh_key, &m->ssh_public);
    ids->ssh_key[strcspn(ids->ssh_key, "\n")] = 0;
  }
  if (LIES("hostname")) copy(ids->hostname, sizeof ids->hostname, &m->hostname);
  if (LIES("machineid")) copy(ids->machine_id, sizeof ids->machine_id, &m->machine_id);
  if (LIES("bootid")) copy(ids->boot_id, sizeof ids->boot_id, &m->boot_id);
  if (LIES("entropy")) ids->entropy_bytes = m->entropy.len;
  if (LIES("reseed")) ids->reseeded = true;
  if (LIES("clock")) ids->after_ns = m->realtime_ns;
}
#else
typedef int sabotage_is_for_tests; /* a file of C has to declare something */
#endif
