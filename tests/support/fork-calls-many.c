/* Forks its VM so many times; prints what each child knows itself as. */
#include "../../guest-agent/bindings/src/flurry.c"

int main(int argc, char **argv) {
  struct flurry_fork fork;
  struct flurry_error error;
  struct flurry_child child;
  struct flurry_vm vm;
  char text[64];
  if (argc != 2 || flurry_fork((unsigned)atoi(argv[1]), &fork, &error) != 0) return 1;
  if (fork.id > 0 && flurry_vm(&vm, &error) == 0) {
    int length = snprintf(text, sizeof text, "%u %u", fork.id, vm.id);
    flurry_exit(0, text, (size_t)length, &error);
    return 1;
  }
  int got;
  while ((got = flurry_next(fork.ticket, -1, &child, &error)) == 1) {
    printf("%s\n", child.result);
    flurry_child_free(&child);
  }
  return got == 0 ? 0 : 1;
}
