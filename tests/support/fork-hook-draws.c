/* Draws from rand() into a file without end, and takes part in forks. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "../../guest-agent/hooks/flurry_fork.h"

static int renew(const struct flurry_fork *fork, void *file) {
  unsigned seed;
  memcpy(&seed, fork->seed, sizeof seed);
  srand(seed);
  fprintf(file, "forked %s %u\n", fork->vm, fork->index);
  return 0;
}

int main(int argc, char **argv) {
  FILE *file = argc == 2 ? fopen(argv[1], "a") : NULL;
  int fd = flurry_fork_join("draws-c");
  if (file == NULL || fd < 0) return 1;
  setvbuf(file, NULL, _IOLBF, 0);
  srand(1);
  for (;;) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    struct flurry_fork fork;
    if (poll(&p, 1, 2) > 0 && flurry_fork_take_part(fd, &fork, renew, file) < 0) return 1;
    fprintf(file, "%d\n", rand());
  }
}
