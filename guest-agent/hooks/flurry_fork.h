/* Takes part in the forks of a Flurry VM, for a program with an event loop of its own:
 *
 *   int fd = flurry_fork_join("my-program");
 *   ...
 *   when fd is readable, at a moment when nothing else of the program runs:
 *     struct flurry_fork fork;
 *     if (flurry_fork_take_part(fd, &fork, renew, state) < 0) ...
 *
 * `renew` is called in each child, with 32 random bytes of its own, and returns 0, or -1 when the child
 * cannot be used. Protocol: guest-agent/protocol/PROTOCOL.md, "Hooks". No library is needed. */
#ifndef FLURRY_FORK_H
#define FLURRY_FORK_H

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FLURRY_FORK_SOCKET "/run/flurry/fork.sock"

struct flurry_fork {
  char vm[129];
  unsigned index; /* place in the family, from 0 on */
  unsigned char seed[32];
};

typedef int (*flurry_fork_renew)(const struct flurry_fork *fork, void *state);

static int flurry_fork_say(int fd, const char *line) {
  size_t len = strlen(line);
  return send(fd, line, len, MSG_NOSIGNAL) == (ssize_t)len ? 0 : -1;
}

/* Byte by byte: nothing of what comes after it may be taken. */
static int flurry_fork_line(int fd, char *line, size_t size) {
  size_t at = 0;
  for (;;) {
    ssize_t n = recv(fd, line + at, 1, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0 || at + 1 == size) return -1;
    if (line[at] == '\n') break;
    at++;
  }
  line[at] = 0;
  return 0;
}

/* Descriptor to wait on, or -1 with errno. `name`: 1 to 32 of A-Z a-z 0-9 _ . - */
static inline int flurry_fork_join(const char *name) {
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = FLURRY_FORK_SOCKET};
  char line[512];
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  snprintf(line, sizeof line, "hook %.32s %d\n", name, (int)getpid());
  if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 && flurry_fork_say(fd, line) == 0 &&
      flurry_fork_line(fd, line, sizeof line) == 0 && strcmp(line, "ok") == 0)
    return fd;
  int why = errno != 0 ? errno : EPROTO;
  close(fd);
  errno = why;
  return -1;
}

/* Stands still for a fork. 1 in a child, 0 where the VM was not forked after all, -1 when the agent is gone. */
static inline int flurry_fork_take_part(int fd, struct flurry_fork *fork, flurry_fork_renew renew, void *state) {
  char line[512], hex[65];
  if (flurry_fork_line(fd, line, sizeof line) != 0 || strcmp(line, "prepare") != 0) return -1;
  if (flurry_fork_say(fd, "ready\n") != 0 || flurry_fork_line(fd, line, sizeof line) != 0) return -1;
  if (sscanf(line, "forked %128s %u %64s", fork->vm, &fork->index, hex) != 3) return 0;
  for (unsigned at = 0; at < sizeof fork->seed; at++) {
    unsigned byte = 0;
    sscanf(hex + 2 * at, "%2x", &byte);
    fork->seed[at] = (unsigned char)byte;
  }
  if (renew(fork, state) != 0) {
    flurry_fork_say(fd, "failed the program could not renew itself\n");
    return -1;
  }
  if (flurry_fork_say(fd, "done\n") != 0 || flurry_fork_line(fd, line, sizeof line) != 0) return -1;
  return 1;
}

#endif
