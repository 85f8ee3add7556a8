#include "agent.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void signal_all(int sig) {
  if (agent.is_init) {
    kill(-1, sig);
    return;
  }
  for (unsigned i = 0; i < OPS_SIZE; i++)
    if (ops[i].kind == OP_EXEC) exec_signal_group(&ops[i], sig);
}

/* Waits until no child is left, woken by SIGCHLD (which is blocked), at most so long. */
static bool reap_all(uint64_t limit_ns) {
  sigset_t chld;
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  uint64_t deadline = now_ns() + limit_ns;
  for (;;) {
    pid_t pid;
    while ((pid = waitpid(-1, NULL, WNOHANG)) > 0) continue;
    if (pid < 0 && errno == ECHILD) return true;
    uint64_t now = now_ns();
    if (now >= deadline) return false;
    struct timespec left = {(time_t)((deadline - now) / 1000000000u), (long)((deadline - now) % 1000000000u)};
    sigtimedwait(&chld, NULL, &left);
  }
}

void stop_now(void) {
  /* Processes that stand still for a fork do not get to do anything. */
  bool has_grace = !identity_is_quiet();
  if (has_grace) signal_all(SIGTERM);
  if (!has_grace || !reap_all((uint64_t)agent.stop_grace_ms * 1000000u)) {
    signal_all(SIGKILL);
    reap_all(1000000000u);
  }
  if (!agent.is_init) exit(0);
  sync();
  reboot(RB_POWER_OFF);
  reboot(RB_AUTOBOOT); /* a machine without power management: QEMU runs with -no-reboot */
  for (;;) pause();
}
