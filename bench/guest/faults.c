/*
 * Measures in a guest what a page costs that is not there yet.
 *
 *   faults start MIB SEED    fills MIB MiB of memory with a pattern, answers on a socket, and returns
 *                            when it does: for a parent's warm-up
 *   faults touch COUNT SEED  reads a word of COUNT pages in an order that SEED tells, each for the first
 *                            time after a fork, and prints what it took as JSON
 *   faults sum               reads all of it and prints as JSON how many pages there are and are wrong
 *
 * Times are nanoseconds of CLOCK_MONOTONIC. What is measured is in the process that `start` leaves
 * behind: the others only ask it. FAULTS_SOCKET names another socket than /run/faults.sock.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES_PER_MIB = 256, MAX_MIB = 1 << 20, LINE = 512 };

static volatile uint64_t *memory;
static uint64_t pages;
static uint64_t pattern_seed;

/* SplitMix64's finalizer: a bijection that spreads every bit. */
static uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/* What a word must be: nothing that compresses, and never zero. */
static uint64_t pattern(uint64_t page, uint64_t word) {
  return mix(mix(pattern_seed) + page * WORDS + word + 1) | 1;
}

/* ---- the order of pages: a permutation that needs no memory, which would have to be fetched too ---- */

static uint64_t half_bits(void) {
  uint64_t bits = 1;
  while (((uint64_t)1 << (2 * bits)) < pages) bits++;
  return bits;
}

/* A Feistel network over the next power of four, walked until it comes to a page that there is. */
static uint64_t nth_page(uint64_t n, uint64_t seed, uint64_t bits) {
  uint64_t mask = ((uint64_t)1 << bits) - 1;
  do {
    uint64_t left = n >> bits, right = n & mask;
    for (uint64_t round = 0; round < 4; round++) {
      uint64_t next = left ^ (mix(right + mix(seed + round)) & mask);
      left = right;
      right = next;
    }
    n = left << bits | right;
  } while (n >= pages);
  return n;
}

/* ---- measuring ---- */

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t read_ns(volatile uint64_t *word, uint64_t *value) {
  uint64_t began = now_ns();
  *value = *word;
  /* The value is there before the clock is asked again. */
  __asm__ volatile("" : : "r"(*value) : "memory");
  return now_ns() - began;
}

static int by_size(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

/* Nearest rank, as runtime/stats.ts has it. */
static uint64_t percentile(const uint64_t *sorted, uint64_t count, uint64_t percent) {
  uint64_t rank = (count * percent + 99) / 100;
  return sorted[rank == 0 ? 0 : rank - 1];
}

static void touch(uint64_t count, uint64_t seed, char *answer) {
  if (count < 1 || count > pages) {
    snprintf(answer, LINE, "error: there are %" PRIu64 " pages\n", pages);
    return;
  }
  /* All of it at once and before: its own faults must not come between the others. */
  size_t bytes = count * sizeof(uint64_t);
  uint64_t *first = mmap(NULL, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (first == MAP_FAILED) {
    snprintf(answer, LINE, "error: no memory for %" PRIu64 " times\n", count);
    return;
  }
  uint64_t *again = first + count, bits = half_bits(), wrong = 0, total = 0, value, known;
  /* The clock and this code are there from here on. */
  read_ns(first, &value);
  for (uint64_t n = 0; n < count; n++) {
    uint64_t page = nth_page(n, seed, bits);
    uint64_t word = mix(seed + page) % WORDS;
    volatile uint64_t *at = &memory[page * WORDS + word];
    first[n] = read_ns(at, &value);
    again[n] = read_ns(at, &known);
    total += first[n];
    if (value != pattern(page, word) || known != value) wrong++;
  }
  qsort(first, count, sizeof(uint64_t), by_size);
  qsort(again, count, sizeof(uint64_t), by_size);
  snprintf(answer, LINE,
           "{\"count\":%" PRIu64 ",\"wrong\":%" PRIu64 ",\"p50ns\":%" PRIu64 ",\"p99ns\":%" PRIu64
           ",\"maxNs\":%" PRIu64 ",\"totalNs\":%" PRIu64 ",\"overheadNs\":%" PRIu64 "}\n",
           count, wrong, percentile(first, count, 50), percentile(first, count, 99), first[count - 1], total,
           percentile(again, count, 50));
  munmap(first, 2 * bytes);
}

static void sum(char *answer) {
  uint64_t wrong = 0;
  for (uint64_t page = 0; page < pages; page++) {
    int good = 1;
    for (uint64_t word = 0; word < WORDS; word++) good &= memory[page * WORDS + word] == pattern(page, word);
    if (!good) wrong++;
  }
  snprintf(answer, LINE, "{\"pages\":%" PRIu64 ",\"wrong\":%" PRIu64 "}\n", pages, wrong);
}

/* ---- the socket: one line asks, one line answers ---- */

static struct sockaddr_un address(void) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  const char *path = getenv("FAULTS_SOCKET");
  snprintf(to.sun_path, sizeof to.sun_path, "%s", path ? path : "/run/faults.sock");
  return to;
}

static int read_line(int fd, char *line) {
  size_t length = 0;
  while (length < LINE - 1) {
    ssize_t got = read(fd, line + length, 1);
    if (got <= 0) return -1;
    if (line[length++] == '\n') {
      line[length] = '\0';
      return 0;
    }
  }
  return -1;
}

static int write_line(int fd, const char *line) {
  size_t length = strlen(line);
  return write(fd, line, length) == (ssize_t)length ? 0 : -1;
}

static void serve(int listener) {
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) continue;
    char line[LINE], answer[LINE];
    uint64_t count, seed;
    if (read_line(fd, line) == 0) {
      if (sscanf(line, "touch %" SCNu64 " %" SCNu64, &count, &seed) == 2) touch(count, seed, answer);
      else if (strcmp(line, "sum\n") == 0) sum(answer);
      else snprintf(answer, LINE, "error: unknown request\n");
      /* Whoever went away needs no answer. */
      (void)write_line(fd, answer);
    }
    close(fd);
  }
}

/* ---- commands ---- */

static int fail(const char *what) {
  perror(what);
  return 1;
}

static int fill(uint64_t mib, uint64_t seed) {
  pages = mib * PAGES_PER_MIB;
  pattern_seed = seed;
  void *mapped = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) return -1;
  memory = mapped;
  for (uint64_t page = 0; page < pages; page++)
    for (uint64_t word = 0; word < WORDS; word++) memory[page * WORDS + word] = pattern(page, word);
  return 0;
}

/* In the process that stays: never returns if all is well. */
static int stay(uint64_t mib, uint64_t seed, int ready) {
  struct sockaddr_un at = address();
  signal(SIGPIPE, SIG_IGN);
  if (fill(mib, seed) < 0) return fail("faults: memory");
  int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (listener < 0) return fail("faults: socket");
  unlink(at.sun_path);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 8) < 0) return fail(at.sun_path);
  int null = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (null < 0 || chdir("/") < 0) return fail("/dev/null");
  for (int fd = 0; fd <= 2; fd++) dup2(null, fd);
  if (write(ready, "y", 1) != 1) return 1;
  close(ready);
  serve(listener);
  return 1;
}

static int start(uint64_t mib, uint64_t seed) {
  int ready[2];
  char byte;
  if (pipe2(ready, O_CLOEXEC) < 0) return fail("faults: pipe");
  pid_t pid = fork();
  if (pid < 0) return fail("faults: fork");
  if (pid == 0) {
    close(ready[0]);
    setsid();
    /* Twice, so that nobody it could ever be asked by is its parent. */
    pid = fork();
    if (pid != 0) _exit(pid < 0);
    _exit(stay(mib, seed, ready[1]));
  }
  close(ready[1]);
  return read(ready[0], &byte, 1) == 1 ? 0 : 1;
}

static int ask(const char *request) {
  struct sockaddr_un to = address();
  char answer[LINE];
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) < 0) return fail(to.sun_path);
  if (write_line(fd, request) < 0 || read_line(fd, answer) < 0) {
    fprintf(stderr, "faults: no answer\n");
    return 1;
  }
  int refused = strncmp(answer, "error: ", 7) == 0;
  fputs(answer, refused ? stderr : stdout);
  return refused;
}

static int number(const char *text, uint64_t most, uint64_t *value) {
  char *end;
  *value = strtoull(text, &end, 10);
  return *text >= '0' && *text <= '9' && *end == '\0' && *value <= most;
}

int main(int argc, char **argv) {
  uint64_t a, b;
  char request[LINE];
  if (argc == 4 && strcmp(argv[1], "start") == 0 && number(argv[2], MAX_MIB, &a) && a > 0 &&
      number(argv[3], UINT64_MAX, &b))
    return start(a, b);
  if (argc == 4 && strcmp(argv[1], "touch") == 0 && number(argv[2], UINT64_MAX, &a) &&
      number(argv[3], UINT64_MAX, &b)) {
    snprintf(request, LINE, "touch %" PRIu64 " %" PRIu64 "\n", a, b);
    return ask(request);
  }
  if (argc == 2 && strcmp(argv[1], "sum") == 0) return ask("sum\n");
  fprintf(stderr, "usage: faults start MIB SEED | touch COUNT SEED | sum\n");
  return 2;
}
