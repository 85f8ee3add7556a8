/*
 * Tells from inside how long a VM stood still, and asks for forks as a program does.
 *
 *   refork sample MIB   writes MIB MiB of memory and prints "ready"; from then on looks at CLOCK_MONOTONIC all the
 *                       time, and prints "max NS", its largest step since the last line, for each line that it reads
 *   refork fork N       forks its VM N times over /run/flurry/vm.sock; each child answers with its exit, and the
 *                       parent prints "forked ID NS" for the call and "joined COUNT NS" when all have ended
 */
#include <inttypes.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LOOK_NS = 200000 };

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int fail(const char *what) {
  perror(what);
  return 1;
}

static int sample(size_t bytes) {
  if (bytes > 0) {
    unsigned char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return fail("mmap");
    /* No two pages alike, nor zero. */
    for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) *(uint64_t *)(memory + at) = at * 0x9e3779b97f4a7c15u + 1;
  }
  printf("ready\n");
  fflush(stdout);
  uint64_t most = 0;
  for (uint64_t last = now_ns();;) {
    struct timespec wait = {0, LOOK_NS};
    struct pollfd in = {.fd = 0, .events = POLLIN};
    int there = ppoll(&in, 1, &wait, NULL);
    uint64_t now = now_ns();
    if (now - last > most) most = now - last;
    last = now;
    if (there <= 0) continue;
    char line[64];
    if (read(0, line, sizeof line) <= 0) return 0;
    printf("max %" PRIu64 "\n", most);
    fflush(stdout);
    most = 0;
    last = now_ns();
  }
}

static int ask(FILE *in, int fd, const char *request, char *answer, size_t size) {
  if (write(fd, request, strlen(request)) != (ssize_t)strlen(request)) return -1;
  return fgets(answer, (int)size, in) != NULL ? 0 : -1;
}

static int fork_vm(const char *count) {
  struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "/run/flurry/vm.sock"};
  char line[256], ticket[64];
  unsigned id = 0, joined = 0;
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0) return fail("vm.sock");
  FILE *in = fdopen(dup(fd), "r");
  uint64_t began = now_ns();
  snprintf(line, sizeof line, "fork %s\n", count);
  if (in == NULL || ask(in, fd, line, line, sizeof line) != 0) return fail("fork");
  if (sscanf(line, "ok %u %63s", &id, ticket) != 2) {
    fputs(line, stderr);
    return 1;
  }
  if (id > 0) {
    ask(in, fd, "exit 0 0\n", line, sizeof line);
    return 1; /* it has not ended */
  }
  printf("forked %u %" PRIu64 "\n", id, now_ns() - began);
  for (;;) {
    snprintf(line, sizeof line, "next %s\n", ticket);
    if (ask(in, fd, line, line, sizeof line) != 0) return fail("next");
    if (strncmp(line, "child ", 6) != 0) break;
    unsigned long bytes = 0, files = 0;
    char state[16] = "";
    if (sscanf(line, "child %*u %*s %15s %*u %lu %lu", state, &bytes, &files) != 3) return fail(line);
    if (strcmp(state, "exited") != 0 || bytes > 0 || files > 0) {
      fprintf(stderr, "A child has not exited: %s", line);
      return 1;
    }
    joined++;
  }
  printf("joined %u %" PRIu64 "\n", joined, now_ns() - began);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "sample") == 0) return sample((size_t)atol(argv[2]) << 20);
  if (argc == 3 && strcmp(argv[1], "fork") == 0) return fork_vm(argv[2]);
  fprintf(stderr, "usage: refork sample MIB | refork fork N\n");
  return 2;
}
