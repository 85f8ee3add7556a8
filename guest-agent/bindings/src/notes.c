/* Each shell has a file with its last ticket. Its name has the VM, the process and when that began: a child of a fork
 * is the same process in another VM, and has no tickets. */
#include "notes.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ANCESTORS_MAX 64

/* Of the line of a process in /proc: its parent and when it began, in ticks since the boot. */
static bool look_at(pid_t pid, pid_t *parent, unsigned long long *began) {
  char path[32], text[1024];
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd >= 0 ? read(fd, text, sizeof text - 1) : -1;
  if (fd >= 0) close(fd);
  if (n <= 0) return false;
  text[n] = 0;
  char *after = strrchr(text, ')'); /* its name may have blanks and brackets */
  return after != NULL && sscanf(after + 1,
                                 " %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
                                 parent, began) == 2;
}

static size_t command_line(pid_t pid, char *to, size_t size) {
  char path[32];
  snprintf(path, sizeof path, "/proc/%d/cmdline", (int)pid);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd >= 0 ? read(fd, to, size) : -1;
  if (fd >= 0) close(fd);
  return n > 0 ? (size_t)n : 0;
}

/* A subshell is a copy of its shell. */
static bool same_program(pid_t a, pid_t b) {
  static char one[4096], other[4096];
  size_t length = command_line(a, one, sizeof one);
  return length > 0 && length == command_line(b, other, sizeof other) && memcmp(one, other, length) == 0;
}

static bool path_of(pid_t pid, unsigned long long began, char *path, size_t size) {
  char vm[FLURRY_VM_MAX] = "";
  FILE *file = fopen("/run/flurry/vm", "r");
  if (file != NULL) {
    if (fscanf(file, "%128s", vm) != 1) vm[0] = 0;
    fclose(file);
  }
  const char *dir = getenv("TMPDIR");
  int n = snprintf(path, size, "%s/flurry-ticket-%u-%s-%d-%llu", dir != NULL && *dir != 0 ? dir : "/tmp",
                   (unsigned)getuid(), vm, (int)pid, began);
  return n > 0 && (size_t)n < size;
}

static void write_note(const char *path, const char *ticket) {
  unlink(path); /* whatever lies there is not followed */
  int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  if (fd < 0 || write(fd, ticket, strlen(ticket)) != (ssize_t)strlen(ticket))
    fprintf(stderr, "flurry: cannot note the ticket in %s: %s\n", path, strerror(errno));
  if (fd >= 0) close(fd);
}

void note(const char *ticket) {
  char path[512];
  unsigned long long began;
  pid_t pid = getppid(), parent;
  /* `id=$(with_a_function)` runs in a subshell that is gone before the shell asks for the ticket. */
  for (int i = 0; i < ANCESTORS_MAX && look_at(pid, &parent, &began); i++) {
    if (path_of(pid, began, path, sizeof path)) write_note(path, ticket);
    if (!same_program(pid, parent)) return;
    pid = parent;
  }
}

static bool read_note(const char *path, char *ticket, size_t size) {
  struct stat s;
  int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
  ssize_t n = fd >= 0 && fstat(fd, &s) == 0 && s.st_uid == getuid() ? read(fd, ticket, size - 1) : -1;
  if (fd >= 0) close(fd);
  if (n <= 0) return false;
  ticket[n] = 0;
  return true;
}

static bool find(pid_t pid, unsigned long long began, char *ticket, size_t size) {
  char path[512];
  return path_of(pid, began, path, sizeof path) && read_note(path, ticket, size);
}

const char *noted(void) {
  static char ticket[FLURRY_NAME_MAX];
  unsigned long long began;
  pid_t pid = getpid(), parent;
  /* A shell's last command may take its place. */
  if (look_at(pid, &parent, &began) && find(pid, began, ticket, sizeof ticket)) return ticket;
  pid = getppid();
  for (int i = 0; i < ANCESTORS_MAX && look_at(pid, &parent, &began); i++) {
    if (find(pid, began, ticket, sizeof ticket)) return ticket;
    if (!same_program(pid, parent)) return NULL;
    pid = parent;
  }
  return NULL;
}
