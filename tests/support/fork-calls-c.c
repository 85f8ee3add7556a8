/* Goes through all fork calls of the C library. */
#include "../../guest-agent/bindings/src/flurry.c"

static struct flurry_error error;

static void check(bool good, const char *what) {
  if (good) return;
  printf("%s: %s %s\n", what, error.code, error.text);
  exit(1);
}

int main(void) {
  struct flurry_vm vm;
  struct flurry_fork fork;
  struct flurry_ticket ticket;
  struct flurry_child *children;
  char checkpoint[FLURRY_NAME_MAX], text[64];
  size_t count;
  check(flurry_vm(&vm, &error) == 0 && vm.id == 0 && vm.parent[0] == 0, "vm");
  check(flurry_exit(0, NULL, 0, &error) == -1 && strcmp(error.code, "NOT_A_CHILD") == 0, "exit in the parent");
  check(flurry_fork(3, &fork, &error) == 0, "fork");
  if (fork.id > 0) {
    int length = snprintf(text, sizeof text, "C child %u", fork.id);
    check(flurry_exit((int)fork.id, text, (size_t)length, &error) == 0, "exit");
  }
  check(flurry_join(fork.ticket, &children, &count, &error) == 0, "join");
  unsigned seen = 0;
  for (size_t i = 0; i < count; i++) {
    snprintf(text, sizeof text, "C child %u", children[i].id);
    check(children[i].status == (int)children[i].id && strcmp((char *)children[i].result, text) == 0, "result");
    seen |= 1u << children[i].id;
    flurry_child_free(&children[i]);
  }
  free(children);
  printf("joined %zu seen %x\n", count, seen);
  int id = flurry_checkpoint_parent(checkpoint, &error);
  check(id >= 0, "checkpoint");
  if (id > 0) check(flurry_exit(0, "woken", 5, &error) == 0, "exit of a clone");
  check(flurry_request_ticket(2, 0, &ticket, &error) == 0 && ticket.granted == 2, "ticket");
  check(flurry_create_clones(checkpoint, ticket.name, &error) == 2, "create");
  check(flurry_join(ticket.name, &children, &count, &error) == 0 && count == 2, "join of clones");
  printf("woken %s %s\n", children[0].result, children[1].result);
  check(flurry_request_ticket(1, 0, &ticket, &error) == 0, "ticket");
  id = flurry_clone(ticket.name, &error);
  check(id >= 0, "clone");
  if (id > 0) pause();
  check(flurry_next(ticket.name, 0, children, &error) == -1 && strcmp(error.code, "JOIN_TIMEOUT") == 0, "next");
  check(flurry_kill(ticket.name, &error) == 1, "kill");
  check(flurry_next(ticket.name, -1, children, &error) == 1 && children[0].state == FLURRY_KILLED, "next of the killed");
  check(flurry_next(ticket.name, -1, children, &error) == 0, "the end");
  printf("good\n");
  return 0;
}
