/* `flurry` in the guest: fork calls for shells. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "notes.h"
#include "text.h"

static const char HELP[] =
    "usage: flurry fork N | ticket N [--expires SECONDS] | clone [TICKET] | checkpoint\n"
    "       flurry create CHECKPOINT [TICKET] | exit [STATUS] [--result TEXT | --result-file FILE]\n"
    "       flurry join [TICKET] [--results | --json] | next [TICKET] [--wait SECONDS] [--results | --json]\n"
    "       flurry kill [TICKET] | id [--json]\n"
    "\n"
    "Forks the VM that this shell runs in. `fork` and `clone` print the id: 0 in the parent, 1 to N in the children.\n"
    "Without a TICKET the last one of this shell is meant.\n"
    "\n"
    "Examples:\n"
    "  id=$(flurry fork 8)\n"
    "  if [ \"$id\" -gt 0 ]; then work \"$id\" > /out/part; flurry exit $?; fi\n"
    "  flurry join && cat /out/t1/*/part\n"
    "\n"
    "  if [ \"$(flurry fork 2)\" = 1 ]; then flurry exit 0 --result \"$(date)\"; fi\n"
    "  flurry join --results\n"
    "\n"
    "join prints a line for each child: id, state, status. It exits with 0 if all have exited with 0, else with 1.\n"
    "An error is told on stderr with its code, and exits with 3; wrong usage with 2.\n";

enum { FAILED = 1, USAGE = 2, REFUSED = 3 };

static struct flurry_error error;

static int no_ticket(void) {
  fprintf(stderr, "flurry: TICKET_UNKNOWN: this shell has no ticket yet; name one\n");
  return REFUSED;
}

static int refused(void) {
  fprintf(stderr, "flurry: %s: %s\n", error.code, error.text);
  return REFUSED;
}

static int usage(void) {
  fputs(HELP, stderr);
  return USAGE;
}

/* Values of options, and what else stands there. */
static struct {
  const char *names[4];
  int count;
  const char *result, *result_file, *expires, *wait;
  bool results, json;
} args;

static bool read_args(int argc, char **argv) {
  for (int i = 0; i < argc; i++) {
    const char **value = NULL;
    if (strcmp(argv[i], "--results") == 0) args.results = true;
    else if (strcmp(argv[i], "--json") == 0) args.json = true;
    else if (strcmp(argv[i], "--result") == 0) value = &args.result;
    else if (strcmp(argv[i], "--result-file") == 0) value = &args.result_file;
    else if (strcmp(argv[i], "--expires") == 0) value = &args.expires;
    else if (strcmp(argv[i], "--wait") == 0) value = &args.wait;
    else if (argv[i][0] == '-' || args.count == 4) return false;
    else args.names[args.count++] = argv[i];
    if (value != NULL && ++i == argc) return false;
    if (value != NULL) *value = argv[i];
  }
  return true;
}

static bool number(const char *text, long least, long most, long *value) {
  char *end;
  errno = 0;
  *value = strtol(text, &end, 10);
  return errno == 0 && end != text && *end == 0 && *value >= least && *value <= most;
}

static void print_child(const struct flurry_child *child) {
  const char *state = flurry_state_name(child->state);
  if (!args.json) {
    printf("%u %s %d\n", child->id, state, child->status);
    if (args.results && child->length > 0) {
      fwrite(child->result, 1, child->length, stdout);
      if (child->result[child->length - 1] != '\n') putchar('\n');
    }
    return;
  }
  printf("{\"id\":%u,\"vm\":\"%s\",\"state\":\"%s\",\"status\":%d,", child->id, child->vm, state, child->status);
  if (is_utf8(child->result, child->length)) {
    printf("\"result\":");
    print_text(child->result, child->length);
  } else {
    printf("\"result\":null,\"resultBase64\":\"");
    print_base64(child->result, child->length);
    putchar('"');
  }
  printf(",\"files\":[");
  for (size_t i = 0; i < child->file_count; i++) {
    if (i > 0) putchar(',');
    print_text((const unsigned char *)child->files[i].path, strlen(child->files[i].path));
  }
  printf("]}\n");
}

static int join(const char *ticket) {
  struct flurry_child *children;
  size_t count;
  bool good = true;
  if (flurry_join(ticket, &children, &count, &error) != 0) return refused();
  for (unsigned id = 0, left = (unsigned)count; left > 0; id++) /* by id; they came as they ended */
    for (size_t i = 0; i < count; i++) {
      if (children[i].id != id || children[i].vm[0] == 0) continue;
      print_child(&children[i]);
      good = good && children[i].state == FLURRY_EXITED && children[i].status == 0;
      flurry_child_free(&children[i]);
      left--;
    }
  free(children);
  return good ? 0 : FAILED;
}

static int next(const char *ticket) {
  struct flurry_child child;
  long seconds = 0;
  if (args.wait != NULL && !number(args.wait, 0, 1000000, &seconds)) return usage();
  int got = flurry_next(ticket, args.wait != NULL ? seconds * 1000 : -1, &child, &error);
  if (got < 0) return refused();
  if (got == 0) return FAILED; /* there is none any more */
  print_child(&child);
  flurry_child_free(&child);
  return 0;
}

static int unreadable(void) {
  fprintf(stderr, "flurry: cannot read %s: %s\n", args.result_file, strerror(errno));
  return REFUSED;
}

static int end_vm(void) {
  static unsigned char bytes[FLURRY_RESULT_MAX + 1];
  long status = 0;
  size_t length = 0;
  if (args.count > 1 || (args.count == 1 && !number(args.names[0], 0, 255, &status))) return usage();
  if (args.result != NULL && args.result_file != NULL) return usage();
  if (args.result != NULL && (length = strlen(args.result)) <= FLURRY_RESULT_MAX) memcpy(bytes, args.result, length);
  if (args.result_file != NULL) {
    bool is_stdin = strcmp(args.result_file, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(args.result_file, "r");
    if (file == NULL) return unreadable();
    errno = 0;
    length = fread(bytes, 1, sizeof bytes, file);
    if (ferror(file)) return unreadable();
  }
  flurry_exit((int)status, bytes, length, &error);
  return refused();
}

static int print_vm(void) {
  struct flurry_vm vm;
  if (flurry_vm(&vm, &error) != 0) return refused();
  if (args.json)
    printf("{\"id\":%u,\"vm\":\"%s\",\"generation\":%u,\"parent\":%s%s%s}\n", vm.id, vm.name, vm.generation,
           vm.parent[0] ? "\"" : "", vm.parent[0] ? vm.parent : "null", vm.parent[0] ? "\"" : "");
  else
    printf("%u %s %u %s\n", vm.id, vm.name, vm.generation, vm.parent[0] ? vm.parent : "-");
  return 0;
}

static int fork_vm(void) {
  struct flurry_fork fork;
  long count;
  if (args.count != 1 || !number(args.names[0], 1, 1000, &count)) return usage();
  if (flurry_fork((unsigned)count, &fork, &error) != 0) return refused();
  if (fork.id == 0) note(fork.ticket);
  printf("%u\n", fork.id);
  return 0;
}

static int ticket(void) {
  struct flurry_ticket got;
  long count, seconds = 0;
  if (args.count != 1 || !number(args.names[0], 1, 1000, &count)) return usage();
  if (args.expires != NULL && !number(args.expires, 1, 600, &seconds)) return usage();
  if (flurry_request_ticket((unsigned)count, (unsigned)seconds * 1000, &got, &error) != 0) return refused();
  note(got.name);
  printf("%s %u\n", got.name, got.granted);
  return 0;
}

static int printed(int value) {
  if (value < 0) return refused();
  printf("%d\n", value);
  return 0;
}

static int checkpoint(void) {
  char name[FLURRY_NAME_MAX];
  int id = flurry_checkpoint_parent(name, &error);
  if (id < 0) return refused();
  printf("%d %s\n", id, name);
  return 0;
}

static int run(int argc, char **argv) {
  if ((argc == 2 && strcmp(argv[1], "help") == 0) || ((argc == 2 || argc == 3) && strcmp(argv[argc - 1], "--help") == 0)) {
    fputs(HELP, stdout);
    return 0;
  }
  if (argc < 2 || !read_args(argc - 2, argv + 2)) return usage();
  const char *verb = argv[1];
  if (strcmp(verb, "fork") == 0) return fork_vm();
  if (strcmp(verb, "ticket") == 0) return ticket();
  if (strcmp(verb, "exit") == 0) return end_vm();
  if (strcmp(verb, "id") == 0 && args.count == 0) return print_vm();
  if (strcmp(verb, "checkpoint") == 0 && args.count == 0) return checkpoint();
  bool creates = strcmp(verb, "create") == 0;
  if (!creates && strcmp(verb, "clone") != 0 && strcmp(verb, "kill") != 0 && strcmp(verb, "join") != 0 &&
      strcmp(verb, "next") != 0)
    return usage();
  if (args.count > 1 + creates || args.count < creates) return usage();
  const char *name = args.count > creates ? args.names[creates] : noted();
  if (name == NULL) return no_ticket();
  if (creates) return printed(flurry_create_clones(args.names[0], name, &error));
  if (*verb == 'c') return printed(flurry_clone(name, &error));
  if (*verb == 'k') return printed(flurry_kill(name, &error));
  return *verb == 'j' ? join(name) : next(name);
}

int main(int argc, char **argv) {
  int code = run(argc, argv);
  if (fflush(stdout) == 0 && !ferror(stdout)) return code;
  fprintf(stderr, "flurry: cannot write: %s\n", strerror(errno));
  return REFUSED;
}
