#include "agent.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Holds every process but ours, and those with a hook, while the VM is frozen: in a child they go on when
 * it has proven who it is, and not before. Source: Linux, Documentation/admin-guide/cgroup-v2.rst, "freeze". */
#define ROOT "/sys/fs/cgroup"
#define GROUP "/flurry-held"
#define HELD ROOT GROUP
#define PF_KTHREAD 0x00200000u /* linux/sched.h; proc(5) shows it */

static bool holding;

static bool put(const char *file, const char *text) {
  int fd = open(file, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t n = write(fd, text, strlen(text));
  int err = errno;
  close(fd);
  errno = err;
  return n == (ssize_t)strlen(text);
}

static ssize_t get(const char *file, char *text, size_t size) {
  int fd = open(file, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = read(fd, text, size - 1);
  close(fd);
  text[n > 0 ? n : 0] = 0;
  return n;
}

/* Threads of the kernel, by a flag: programs that it starts are children of number 2 as well. */
static bool is_kernels(const char *pid) {
  char file[64], text[512];
  snprintf(file, sizeof file, "/proc/%.20s/stat", pid);
  if (get(file, text, sizeof text) <= 0) return true; /* it is gone */
  char *end = strrchr(text, ')');
  char state;
  unsigned flags = 0;
  if (end == NULL || sscanf(end + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2) return true;
  return (flags & PF_KTHREAD) != 0 || state == 'Z' || state == 'X';
}

/* Its cgroup as the line `0::PATH` says. The name alone proves nothing: anyone may make a cgroup of that name. */
static bool is_held(const char *pid) {
  char file[64], text[1024];
  snprintf(file, sizeof file, "/proc/%.20s/cgroup", pid);
  if (get(file, text, sizeof text) <= 0) return true; /* it is gone */
  const char *path = strstr(text, "0::" GROUP);
  return path != NULL && (path == text || path[-1] == '\n') && strchr("/\n", path[strlen("0::" GROUP)]) != NULL;
}

/* Puts one process where it belongs; whether it had to be moved, or -1. */
static int settle(const char *pid) {
  if (is_kernels(pid)) return 0;
  bool waits_in_hook = hooks_has((pid_t)atoi(pid));
  if (is_held(pid) != waits_in_hook) return 0;
  if (!waits_in_hook && mkdir(HELD, 0755) != 0 && errno != EEXIST) return -1;
  if (!holding && !waits_in_hook) {
    holding = true;
    if (!put(HELD "/cgroup.freeze", "1")) return -1; /* who comes in stands still at once */
  }
  if (put(waits_in_hook ? ROOT "/cgroup.procs" : HELD "/cgroup.procs", pid) || errno == ESRCH) return 1;
  return -1;
}

/* Moves all who are not where they belong; returns how many those were, or -1. */
static int gather(void) {
  DIR *dir = opendir("/proc");
  int moved = dir == NULL ? -1 : 0;
  for (struct dirent *e; moved >= 0 && (e = readdir(dir)) != NULL;) {
    if (!isdigit((unsigned char)e->d_name[0]) || atoi(e->d_name) == 1) continue;
    int one = settle(e->d_name);
    moved = one < 0 ? -1 : moved + one;
  }
  if (dir != NULL) closedir(dir);
  return moved;
}

/* Whether the kernel says so by then; it tells of each change. */
static bool is_frozen_by(uint64_t deadline_ns) {
  int fd = open(HELD "/cgroup.events", O_RDONLY | O_CLOEXEC);
  bool frozen = false;
  while (fd >= 0 && !frozen) {
    char text[256];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    frozen = strstr(text, "frozen 1") != NULL;
    uint64_t now = now_ns();
    if (frozen || now >= deadline_ns) break;
    struct pollfd p = {.fd = fd, .events = POLLPRI};
    poll(&p, 1, (int)((deadline_ns - now) / 1000000u) + 1);
  }
  if (fd >= 0) close(fd);
  return frozen;
}

/* Whether nobody was found out of place in two looks: who was moved may have started another one that the
 * first look had passed by already. */
static bool gather_all(uint64_t deadline_ns) {
  int calm = 0;
  while (calm < 2) {
    int moved = gather();
    if (moved < 0 || (moved > 0 && now_ns() >= deadline_ns)) return false;
    calm = moved == 0 ? calm + 1 : 0;
  }
  return true;
}

bool hold(uint64_t deadline_ns) {
  if (!agent.is_init) return true;
  /* Empty since an earlier fork: it goes, and costs nothing in this one's children. */
  bool has_group = access(HELD, F_OK) == 0 && rmdir(HELD) != 0;
  if (has_group) {
    holding = true;
    if (!put(HELD "/cgroup.freeze", "1")) {
      hold_end();
      return false;
    }
  }
  if (gather_all(deadline_ns) && (!holding || is_frozen_by(deadline_ns))) return true;
  hold_end();
  return false;
}

void hold_end(void) {
  if (holding && !put(HELD "/cgroup.freeze", "0"))
    dprintf(2, "flurry-init: Cannot let the processes go on: %s\n", strerror(errno));
  holding = false;
}
