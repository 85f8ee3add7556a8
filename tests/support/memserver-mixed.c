/*
 * Holds in a guest memory that is half pages of zeros and half pages without a pattern, all mixed.
 *
 *   mixed fill PATH MIB      makes a file of it; in a tmpfs it is memory of the guest
 *   mixed check PATH SEED    reads all of it, in an order that SEED tells, each page by one word first and
 *                            by the rest of it when all have been seen; prints as JSON how many pages there
 *                            are, how many read as zeros and are not, and how many are wrong otherwise
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };

static uint64_t mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static uint64_t word_of(uint64_t page, uint64_t word) {
  return mix(page) & 1 ? mix(page * WORDS + word + 1) | 1 : 0;
}

static int fail(const char *what) {
  perror(what);
  return 1;
}

static int fill(const char *path, uint64_t mib) {
  uint64_t words[WORDS];
  int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0) return fail(path);
  for (uint64_t page = 0; page < mib * 256; page++) {
    for (uint64_t word = 0; word < WORDS; word++) words[word] = word_of(page, word);
    if (write(fd, words, PAGE) != PAGE) return fail("write");
  }
  return 0;
}

static int check(const char *path, uint64_t seed) {
  struct stat info;
  int fd = open(path, O_RDONLY);
  if (fd < 0 || fstat(fd, &info) < 0) return fail(path);
  const volatile uint64_t *memory = mmap(NULL, info.st_size, PROT_READ, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return fail("mmap");
  uint64_t pages = info.st_size / PAGE, zeros = 0, wrong = 0;
  unsigned char *bad = calloc(pages, 1);
  uint32_t *order = malloc(pages * sizeof *order);
  if (!bad || !order) return fail("memory");
  for (uint64_t page = 0; page < pages; page++) order[page] = page;
  for (uint64_t left = pages; left > 1; left--) {
    uint64_t other = mix(seed + left) % left;
    uint32_t page = order[left - 1];
    order[left - 1] = order[other];
    order[other] = page;
  }
  for (uint64_t n = 0; n < pages; n++) {
    uint64_t page = order[n], word = mix(seed ^ n) % WORDS;
    uint64_t value = memory[page * WORDS + word], right = word_of(page, word);
    if (value == right) continue;
    bad[page] = 1;
    if (value == 0) zeros++;
    else wrong++;
  }
  for (uint64_t page = 0; page < pages; page++) {
    int good = 1;
    for (uint64_t word = 0; word < WORDS; word++) good &= memory[page * WORDS + word] == word_of(page, word);
    if (!good && !bad[page]) wrong++;
  }
  printf("{\"pages\":%lu,\"zeros\":%lu,\"wrong\":%lu}\n", (unsigned long)pages, (unsigned long)zeros, (unsigned long)wrong);
  return 0;
}

int main(int argc, char **argv) {
  if (argc == 4 && strcmp(argv[1], "fill") == 0) return fill(argv[2], strtoull(argv[3], NULL, 10));
  if (argc == 4 && strcmp(argv[1], "check") == 0) return check(argv[2], strtoull(argv[3], NULL, 10));
  fprintf(stderr, "usage: mixed fill PATH MIB | mixed check PATH SEED\n");
  return 2;
}
