#include "agent.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* Longest time for the host to take what programs have written. */
#define DRAIN_NS 5000000000u

/* How the VM is brought to rest, forked, and let go again: PROTOCOL.md, "Fork". */
static struct {
  enum { AWAKE, PREPARING, DRAINING, HELD, IDENTIFYING, IDENTIFIED } state;
  uint32_t id; /* of the request that has no answer yet; 0: nobody waits for one */
  uint64_t deadline_ns, began_ns, kernel_ns;
  struct ids ids;
} fork_;

static int timer = -1;
static bool armed;

uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_BOOTTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void set_timer(uint64_t ns) {
  struct itimerspec t = {.it_value = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)}};
  if (ns == 0 && !armed) return;
  armed = ns > 0;
  if (timer < 0) {
    timer = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    watch(timer, EPOLLIN, TAG_TIMER, false);
  }
  timerfd_settime(timer, 0, &t, NULL);
}

static void text_field(struct mp_writer *w, const char *name, const char *value) {
  mp_cstr(w, name);
  mp_cstr(w, value);
}

static void number_field(struct mp_writer *w, const char *name, uint64_t value) {
  mp_cstr(w, name);
  mp_uint(w, value);
}

static void flag_field(struct mp_writer *w, const char *name, bool value) {
  mp_cstr(w, name);
  mp_bool(w, value);
}

void identity_hello(uint32_t id) {
  struct utsname u;
  struct sysinfo s;
  memset(&s, 0, sizeof s);
  uname(&u);
  sysinfo(&s);
  struct mp_writer *w = tx_begin(FL_MSG_HELLO, id, 8);
  number_field(w, "protocol", FL_PROTOCOL_VERSION);
  text_field(w, "agent", FL_AGENT_VERSION);
  text_field(w, "kernel", u.release);
  text_field(w, "hostname", u.nodename);
  number_field(w, "pid", (uint64_t)getpid());
  number_field(w, "bootNs", agent.ready_ns);
  number_field(w, "nowNs", now_ns());
  number_field(w, "memBytes", (uint64_t)s.totalram * s.mem_unit);
  tx_end();
}

bool identity_is_quiet(void) { return fork_.state != AWAKE; }

bool identity_is_preparing(void) { return fork_.state == PREPARING || fork_.state == DRAINING; }

bool identity_is_held(void) { return fork_.state == HELD; }

static void wake(const char *word) {
  hold_end();
  hooks_go(word);
  fork_.state = AWAKE;
  fork_.id = 0;
}

static void send_identity(void) {
  struct ids *ids = &fork_.ids;
  struct mp_writer *w = tx_begin(FL_MSG_IDENTIFIED, fork_.id, ids->has_ssh_keys ? 15 : 14);
  text_field(w, "hostname", ids->hostname);
  number_field(w, "index", ids->index);
  text_field(w, "vmId", ids->vm_id);
  text_field(w, "machineId", ids->machine_id);
  text_field(w, "bootId", ids->boot_id);
  number_field(w, "beforeNs", ids->before_ns);
  number_field(w, "realtimeNs", ids->after_ns);
  number_field(w, "entropyBytes", ids->entropy_bytes);
  flag_field(w, "reseeded", ids->reseeded);
  mp_cstr(w, "draw");
  mp_bin_head(w, sizeof ids->draw);
  mp_raw(w, ids->draw, sizeof ids->draw);
  flag_field(w, "vmGenId", ids->vm_gen_id);
  if (ids->has_ssh_keys) text_field(w, "sshKey", ids->ssh_key);
  number_field(w, "kernelNs", fork_.kernel_ns);
  number_field(w, "tookNs", now_ns() - fork_.began_ns);
  mp_cstr(w, "hooks");
  hooks_write(w);
  tx_end();
}

static void identified(void) {
  if (fork_.state == IDENTIFYING) fork_.state = IDENTIFIED;
  if (fork_.id != 0 && !STALLS("hooks")) send_identity();
  fork_.id = 0;
}

static void quiesced(void) {
  char why[HOOK_TEXT_MAX + 64];
  if (hooks_failure(why, sizeof why)) {
    if (fork_.id != 0) tx_error(fork_.id, FL_ERR_BUSY, 0, "Cannot quiesce: %s", why);
    wake("resume\n");
    return;
  }
  if (!hold(fork_.deadline_ns)) {
    if (fork_.id != 0) tx_error(fork_.id, FL_ERR_BUSY, 0, "Cannot quiesce: processes do not stand still");
    wake("resume\n");
    return;
  }
  fork_.state = DRAINING;
  if (fork_.deadline_ns < now_ns() + DRAIN_NS) fork_.deadline_ns = now_ns() + DRAIN_NS;
  set_timer(DRAIN_NS);
}

/* What programs wrote before they stood still is told before: in a fork it is nobody's. */
static void drained(void) {
  exec_reap();
  if (!ops_drained()) {
    if (now_ns() < fork_.deadline_ns) return;
    if (fork_.id != 0) tx_error(fork_.id, FL_ERR_BUSY, 0, "Cannot quiesce: the host does not read");
    set_timer(0);
    wake("resume\n");
    return;
  }
  set_timer(0);
  ids_watch(true);
  fork_.state = HELD;
  if (fork_.id == 0) return;
  struct mp_writer *w = tx_begin(FL_MSG_QUIESCED, fork_.id, 1);
  mp_cstr(w, "hooks");
  mp_uint(w, hooks_count());
  tx_end(); /* everything before it is in the same queue, so it leaves last */
  fork_.id = 0;
}

void identity_pump(void) {
  if (fork_.state == DRAINING) drained();
  if (fork_.state != PREPARING && fork_.state != IDENTIFYING) return;
  if (hooks_waiting()) {
    if (now_ns() < fork_.deadline_ns) return;
    hooks_give_up();
  }
  set_timer(0);
  if (fork_.state == IDENTIFYING) {
    identified();
    return;
  }
  quiesced();
  if (fork_.state == DRAINING) drained();
}

void identity_timer(void) {
  uint64_t count;
  while (read(timer, &count, sizeof count) > 0) continue;
}

/* Answers when all who have a hook have, or the time is over. */
static void await_hooks(uint32_t ms) {
  fork_.deadline_ns = now_ns() + (uint64_t)ms * 1000000u;
  if (hooks_waiting()) set_timer((uint64_t)ms * 1000000u + 1);
  identity_pump();
}

void identity_quiesce(const struct msg *m) {
  if (fork_.state != AWAKE && fork_.state != HELD) {
    tx_error(m->id, FL_ERR_STATE, 0, "Cannot quiesce: the last fork has not been released");
    return;
  }
  bool again = fork_.state == HELD;
  fork_.state = PREPARING;
  fork_.id = m->id;
  if (!again) hooks_prepare();
  await_hooks(HOOK_MS);
}

void identity_identify(const struct msg *m) {
  struct ids *ids = &fork_.ids;
  if (!agent.sets_hostname) {
    tx_error(m->id, FL_ERR_SYS, EPERM, "Cannot set the host name: this agent does not own its machine");
    return;
  }
  if (fork_.state != AWAKE && fork_.state != HELD) {
    tx_error(m->id, FL_ERR_STATE, 0, "Cannot identify: the last request is under way, or was not released");
    return;
  }
#ifdef FL_SABOTAGE
  snprintf(sabotage, sizeof sabotage, "%.*s", (int)m->hostname.len, m->hostname.p);
  if (strncmp(sabotage, "sabotage-stall", 14) == 0 && !STALLS("hooks")) return;
#endif
  if (fork_.state == AWAKE) ids_watch(false);
  fork_.began_ns = now_ns();
  if (!SKIPS("index")) agent.index = m->index;
  if (!SKIPS("vmid")) snprintf(agent.vm_id, sizeof agent.vm_id, "%.*s", (int)m->vm_id.len, m->vm_id.p);
  const char *failed = ids_take(m, ids);
  ids_vm();
  if (failed != NULL) {
    tx_error(m->id, FL_ERR_SYS, errno, "Cannot %s: %s", failed, strerror(errno));
    return;
  }
  ids_read(ids);
  ids->index = agent.index;
  memcpy(ids->vm_id, agent.vm_id, sizeof ids->vm_id);
#ifdef FL_SABOTAGE
  sabotage_lies(m, ids);
#endif
  fork_.kernel_ns = now_ns() - fork_.began_ns;
  fork_.id = m->id;
  if (fork_.state == AWAKE) {
    identified(); /* a VM that was never frozen: nobody waits in a hook */
    return;
  }
  fork_.state = IDENTIFYING;
  if (!SKIPS("hooks")) hooks_forked();
  await_hooks(m->has_hook_timeout_ms ? m->hook_timeout_ms : HOOK_MS);
}

void identity_release(const struct msg *m) {
  if (fork_.state == IDENTIFYING) {
    tx_error(m->id, FL_ERR_STATE, 0, "Cannot release: an earlier request is under way");
    return;
  }
  if (identity_is_preparing() && fork_.id != 0)
    tx_error(fork_.id, FL_ERR_STATE, 0, "Cannot quiesce: the VM was released meanwhile");
  if (m->has_realtime_ns && !ids_clock(m->realtime_ns))
    tx_error(m->id, FL_ERR_SYS, errno, "Cannot set the clock: %s", strerror(errno));
  bool forked = fork_.state == IDENTIFIED;
  if (fork_.state != AWAKE) wake(forked ? "go\n" : "resume\n");
  if (forked) calls_announce();
}

/* The host went: who waited for an answer is not there any more. */
void identity_forget(void) {
  fork_.id = 0;
  if (identity_is_preparing()) wake("resume\n");
}
