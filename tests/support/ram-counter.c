/*
 * Writes a counter over 64 MiB of memory, page after page, round after round, for ever. Each page
 * keeps its last rounds: when they were written (CLOCK_MONOTONIC, ns) and under which host name. So
 * the memory tells at any later time what it was at a given moment, and who has written it since.
 */
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { PAGES = 16384, PAGE = 4096, ENTRIES = 127, BATCH = 1024 };

struct entry {
  uint64_t round;
  uint64_t ns;
  char host[16];
};

struct page {
  uint64_t magic;
  uint64_t index;
  uint64_t unused[2];
  struct entry entries[ENTRIES];
};

_Static_assert(sizeof(struct page) == PAGE, "one page");

int main(void) {
  struct page *pages =
      mmap(NULL, (size_t)PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (pages == MAP_FAILED) return 1;
  for (uint64_t round = 1;; round++) {
    for (uint64_t i = 0; i < PAGES; i++) {
      struct page *page = &pages[i];
      struct entry *entry = &page->entries[round % ENTRIES];
      struct timespec now;
      page->magic = 0x52544e554f434d52u; /* "RMCOUNTR" */
      page->index = i;
      clock_gettime(CLOCK_MONOTONIC, &now);
      gethostname(entry->host, sizeof entry->host);
      entry->ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
      entry->round = round;
      /* A fast machine must not come round to the first entries while somebody still looks at them. */
      if (i % BATCH == BATCH - 1) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    }
  }
}
