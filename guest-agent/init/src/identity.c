#include "agent.h"

#include <errno.h>
#include <string.h>
#include <sys/sysinfo.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void identity_hello(uint32_t id) {
  struct utsname u;
  struct sysinfo s;
  memset(&s, 0, sizeof s);
  uname(&u);
  sysinfo(&s);
  struct mp_writer *w = tx_begin(FL_MSG_HELLO, id, 8);
  mp_cstr(w, "protocol");
  mp_uint(w, FL_PROTOCOL_VERSION);
  mp_cstr(w, "agent");
  mp_cstr(w, FL_AGENT_VERSION);
  mp_cstr(w, "kernel");
  mp_cstr(w, u.release);
  mp_cstr(w, "hostname");
  mp_cstr(w, u.nodename);
  mp_cstr(w, "pid");
  mp_uint(w, (uint64_t)getpid());
  mp_cstr(w, "bootNs");
  mp_uint(w, agent.ready_ns);
  mp_cstr(w, "nowNs");
  mp_uint(w, now_ns());
  mp_cstr(w, "memBytes");
  mp_uint(w, (uint64_t)s.totalram * s.mem_unit);
  tx_end();
}

void identity_identify(const struct msg *m) {
  struct utsname u;
  if (!agent.sets_hostname) {
    tx_error(m->id, FL_ERR_SYS, EPERM, "Cannot set the host name: this agent does not own its machine");
    return;
  }
  if (sethostname(m->hostname.p, m->hostname.len) != 0) {
    tx_error(m->id, FL_ERR_SYS, errno, "Cannot set the host name: %s", strerror(errno));
    return;
  }
  agent.index = m->index;
  agent.identified = true;
  uname(&u); /* the answer is what the kernel says now, not what was asked */
  struct mp_writer *w = tx_begin(FL_MSG_IDENTIFIED, m->id, 2);
  mp_cstr(w, "hostname");
  mp_cstr(w, u.nodename);
  mp_cstr(w, "index");
  mp_uint(w, agent.index);
  tx_end();
}
