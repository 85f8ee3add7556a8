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
#define HELD "/sys/fs/cgroup/flurry-held"
#define ROUNDS 100

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

/* Threads of the kernel are children of its number 2. */
static bool is_kernels(const char *pid) {
  char file[64], text[512];
  snprintf(file, sizeof file, "/proc/%.20s/stat", pid);
  if (get(file, text, sizeof text) <= 0) return true; /* it is gone */
  char *end = strrchr(text, ')');
  char state;
  int parent = 0;
  if (end == NULL || sscanf(end + 1, " %c %d", &state, &parent) != 2) return true;
  return parent == 2 || strcmp(pid, "2") == 0 || state == 'Z' || state == 'X';
}

static bool is_held(const char *pid) {
  char file[64], text[512];
  snprintf(file, sizeof file, "/proc/%.20s/cgroup", pid);
  return get(file, text, sizeof text) <= 0 || strstr(text, "/flurry-held") != NULL;
}

/* Moves all that are not held yet; returns how many those were, or -1. */
static int gather(void) {
  DIR *dir = opendir("/proc");
  int moved = 0;
  if (dir == NULL) return -1;
  for (struct dirent *e; (e = readdir(dir)) != NULL;) {
    if (!isdigit((unsigned char)e->d_name[0])) continue;
    pid_t pid = (pid_t)atoi(e->d_name);
    if (pid == getpid() || hooks_has(pid) || is_kernels(e->d_name) || is_held(e->d_name)) continue;
    if (moved == 0 && mkdir(HELD, 0755) != 0 && errno != EEXIST) {
      closedir(dir);
      return -1;
    }
    moved++;
    if (put(HELD "/cgroup.procs", e->d_name) || errno == ESRCH) continue;
    closedir(dir);
    return -1;
  }
  closedir(dir);
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

bool hold(uint64_t deadline_ns) {
  if (!agent.is_init) return true;
  int moved = gather();
  if (moved == 0 && access(HELD, F_OK) != 0) return true; /* there is nobody */
  holding = true;
  /* Who is moved may have started another one meanwhile. */
  for (int round = 0; moved > 0 && round < ROUNDS && now_ns() < deadline_ns; round++) moved = gather();
  if (moved == 0 && put(HELD "/cgroup.freeze", "1") && is_frozen_by(deadline_ns)) return true;
  hold_end();
  return false;
}

void hold_end(void) {
  if (holding) put(HELD "/cgroup.freeze", "0");
  holding = false;
}
