/* Makes fork calls as its arguments say, with a timer that interrupts all that waits; what comes of each is a line.
 * calls-driver.py and calls-driver.ts do the same. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "flurry.h"

static struct flurry_error error;

static void tick(int signum) { (void)signum; }

static void refused(void) { printf("error %s\n", error.code); }

static void counted(int value) {
  if (value < 0) refused();
  else printf("%d\n", value);
}

static void show(struct flurry_child *child) {
  printf("%u %s %s %d ", child->id, child->vm, flurry_state_name(child->state), child->status);
  for (size_t i = 0; i < child->length; i++) printf("%02x", child->result[i]);
  for (size_t i = 0; i < child->file_count; i++) printf("|%s", child->files[i].path);
  putchar('\n');
  flurry_child_free(child);
}

static void next(const char *ticket, const char *ms) {
  struct flurry_child child;
  int got = flurry_next(ticket, ms != NULL ? atol(ms) : -1, &child, &error);
  if (got < 0) refused();
  else if (got == 0) printf("end\n");
  else show(&child);
}

static void join(const char *ticket) {
  struct flurry_child *children;
  size_t count;
  if (flurry_join(ticket, &children, &count, &error) != 0) return refused();
  printf("joined %zu\n", count);
  for (size_t i = 0; i < count; i++) show(&children[i]);
  free(children);
}

static void leave(const char *status, const char *result) {
  static char bytes[2 << 20];
  size_t length = result != NULL ? strlen(result) : 0;
  if (result != NULL && result[0] == '*') memset(bytes, 'x', length = (size_t)atol(result + 1));
  else if (result != NULL) memcpy(bytes, result, length);
  flurry_exit(atoi(status), bytes, length, &error);
  refused();
}

static void call(char *line) {
  char *rest = line, *verb = strsep(&rest, " "), *one = strsep(&rest, " "), *two = strsep(&rest, " ");
  struct flurry_ticket ticket;
  struct flurry_fork fork_;
  struct flurry_vm vm;
  char name[FLURRY_NAME_MAX];
  int id;
  if (strcmp(verb, "ticket") == 0) {
    if (flurry_request_ticket((unsigned)atoi(one), two != NULL ? (unsigned)atoi(two) : 0, &ticket, &error) != 0) refused();
    else printf("%s %u\n", ticket.name, ticket.granted);
  } else if (strcmp(verb, "fork") == 0) {
    if (flurry_fork((unsigned)atoi(one), &fork_, &error) != 0) refused();
    else printf("%u %s %u\n", fork_.id, fork_.ticket, fork_.granted);
  } else if (strcmp(verb, "id") == 0) {
    if (flurry_vm(&vm, &error) != 0) refused();
    else printf("%u %s %u %s\n", vm.id, vm.name, vm.generation, vm.parent[0] ? vm.parent : "-");
  } else if (strcmp(verb, "checkpoint") == 0) {
    if ((id = flurry_checkpoint_parent(name, &error)) < 0) refused();
    else printf("%d %s\n", id, id == 0 ? name : "-");
  } else if (strcmp(verb, "process") == 0) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
      call(one);
      fflush(stdout);
      _exit(0);
    }
    while (waitpid(pid, NULL, 0) < 0) {
    }
  } else if (strcmp(verb, "clone") == 0) counted(flurry_clone(one, &error));
  else if (strcmp(verb, "create") == 0) counted(flurry_create_clones(one, two, &error));
  else if (strcmp(verb, "kill") == 0) counted(flurry_kill(one, &error));
  else if (strcmp(verb, "next") == 0) next(one, two);
  else if (strcmp(verb, "join") == 0) join(one);
  else if (strcmp(verb, "exit") == 0) leave(one, two);
  else exit(2);
}

int main(int argc, char **argv) {
  struct sigaction action = {.sa_handler = tick}; /* no SA_RESTART */
  struct itimerval each = {.it_interval.tv_usec = 1000, .it_value.tv_usec = 1000};
  sigaction(SIGALRM, &action, NULL);
  setitimer(ITIMER_REAL, &each, NULL);
  for (int i = 1; i < argc; i++) call(argv[i]);
  return 0;
}
