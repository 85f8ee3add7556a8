#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void load(const char *path) {
  char what[FL_PATH_MAX + 32];
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) != 0 && errno != EEXIST)) {
    int err = errno;
    snprintf(what, sizeof what, "Cannot load module \"%s\"", path);
    boot_fail(what, err);
  }
  close(fd);
}

/* One path a line, in the order of their needs; empty lines and those with # are skipped. */
void modules_load(const char *list) {
  static char text[16384];
  int fd = open(list, O_RDONLY | O_CLOEXEC);
  if (fd < 0 && errno == ENOENT) return; /* a kernel with everything built in */
  ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
  if (n < 0) boot_fail("Cannot read the module list /flurry/modules", errno);
  close(fd);
  if (n == (ssize_t)sizeof text - 1) boot_fail("Cannot read the module list /flurry/modules", EFBIG);
  text[n] = 0;
  char *rest = NULL;
  for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
    if (*line != '#' && *line != 0) load(line);
}
