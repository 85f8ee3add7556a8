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

static bool holding, has_group;

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

/* Threads of the kernel that have been looked at: looking costs more than all else here, and a VM has dozens. */
#define PIDS_KNOWN 32768
static uint8_t kernels[PIDS_KNOWN / 8];

/* A number that is another's by now is told by its process group, which threads of the kernel have none of. */
static bool is_known(int pid) {
  return pid < PIDS_KNOWN && (kernels[pid / 8] & 1 << pid % 8) != 0 && getpgid(pid) == 0;
}

/* Threads of the kernel, by a flag: programs that it starts are children of number 2 as well. Or nobody any more. */
static bool is_kernels(const char *pid) {
  char file[64], text[512];
  int number = atoi(pid);
  if (is_known(number)) return true;
  snprintf(file, sizeof file, "/proc/%.20s/stat", pid);
  if (get(file, text, sizeof text) <= 0) return true; /* it is gone */
  char *end = strrchr(text, ')');
  char state;
  unsigned flags = 0;
  if (end == NULL || sscanf(end + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2) return true;
  bool is_thread = (flags & PF_KTHREAD) != 0;
  if (is_thread && number < PIDS_KNOWN) kernels[number / 8] |= (uint8_t)(1 << number % 8);
  return is_thread || state == 'Z' || state == 'X';
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
  has_group |= !waits_in_hook;
  if (put(waits_in_hook ? ROOT "/cgroup.procs" : HELD "/cgroup.procs", pid) || errno == ESRCH) return 1;
  return -1;
}

/* Whether there are cgroups beside ours: a program may make some. */
static bool has_others(void) {
  char text[256];
  const char *count = get(ROOT "/cgroup.stat", text, sizeof text) > 0 ? strstr(text, "nr_descendants ") : NULL;
  return count == NULL || atoi(count + strlen("nr_descendants ")) > has_group;
}

/* Settles those that a cgroup has. */
static int gather_of(const char *procs) {
  int fd = open(procs, O_RDONLY | O_CLOEXEC), moved = 0;
  char text[4096];
  size_t fill = 0;
  if (fd < 0) return errno == ENOENT ? 0 : -1;
  for (ssize_t n; moved >= 0 && (n = read(fd, text + fill, sizeof text - 1 - fill)) > 0;) {
    char *line = text, *end;
    text[fill += (size_t)n] = 0;
    for (; moved >= 0 && (end = strchr(line, '\n')) != NULL; line = end + 1) {
      *end = 0;
      int one = strcmp(line, "1") == 0 || strcmp(line, "0") == 0 ? 0 : settle(line);
      moved = one < 0 ? -1 : moved + one;
    }
    fill -= (size_t)(line - text);
    memmove(text, line, fill);
  }
  close(fd);
  return moved;
}

/* Moves all who are not where they belong; returns how many those were, or -1. */
static int gather(void) {
  if (!has_others()) {
    int held = has_group ? gather_of(HELD "/cgroup.procs") : 0, moved = gather_of(ROOT "/cgroup.procs");
    return held < 0 || moved < 0 ? -1 : held + moved;
  }
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

/* Whether nobody was found out of place: who was moved may have started another one that the look had passed by. */
static bool gather_all(uint64_t deadline_ns) {
  for (int moved = 1; moved > 0;) {
    moved = gather();
    if (moved < 0 || (moved > 0 && now_ns() >= deadline_ns)) return false;
  }
  return true;
}

bool hold(uint64_t deadline_ns) {
  if (!agent.is_init) return true;
  /* Empty since an earlier fork: it goes, and costs nothing in this one's children. */
  has_group = access(HELD, F_OK) == 0 && rmdir(HELD) != 0;
  /* They are brought together while they run, which takes its time; then stand still all at once, and are looked for
   * once more: who comes in then stands still, too. */
  bool done = gather_all(deadline_ns);
  if (done && has_group) {
    holding = true;
    done = put(HELD "/cgroup.freeze", "1") && is_frozen_by(deadline_ns) && gather_all(deadline_ns) &&
           is_frozen_by(deadline_ns);
  }
  if (!done) hold_end();
  return done;
}

void hold_end(void) {
  if (holding && !put(HELD "/cgroup.freeze", "0"))
    dprintf(2, "flurry-init: Cannot let the processes go on: %s\n", strerror(errno));
  holding = false;
}
