#include "flurry.h"

#include <errno.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define SOCKET_PATH "/run/flurry/vm.sock"
#define LINE_SIZE 65536
#define FILES_MAX 100000u

/* The process's conversation. A process that fork(2) has made has it from another one, and opens its own. */
static struct {
  int fd;
  pid_t owner; /* 0: none is open */
  size_t start, end;
  char bytes[LINE_SIZE];
} call;

__attribute__((format(printf, 3, 4)))
static int fail(struct flurry_error *error, const char *code, const char *format, ...) {
  va_list args;
  if (error == NULL) return -1;
  snprintf(error->code, sizeof error->code, "%s", code);
  va_start(args, format);
  vsnprintf(error->text, sizeof error->text, format, args);
  va_end(args);
  return -1;
}

static void hang_up(void) {
  if (call.owner != 0) close(call.fd);
  call.owner = 0;
}

static int no_host(struct flurry_error *error, const char *what) {
  int why = errno;
  hang_up();
  return fail(error, "NO_HOST", "%s%s%s", what, why != 0 ? ": " : "", why != 0 ? strerror(why) : "");
}

static int bad_answer(struct flurry_error *error, const char *line) {
  hang_up();
  return fail(error, "BAD_ANSWER", "the host answered \"%.200s\"", line);
}

static int connected(struct flurry_error *error) {
  const char *path = getenv("FLURRY_VM_SOCKET");
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (call.owner == getpid()) return 0;
  hang_up(); /* the other process keeps its own */
  if (path == NULL) path = SOCKET_PATH;
  if (strlen(path) >= sizeof address.sun_path) return fail(error, "NO_HOST", "the path of the socket is too long");
  strcpy(address.sun_path, path);
  call.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (call.fd < 0) return no_host(error, "no socket");
  call.owner = getpid();
  call.start = call.end = 0;
  int done;
  do done = connect(call.fd, (struct sockaddr *)&address, sizeof address);
  while (done != 0 && errno == EINTR);
  return done == 0 ? 0 : no_host(error, "this is no Flurry VM");
}

static int say(const void *bytes, size_t length, struct flurry_error *error) {
  for (size_t done = 0; done < length;) {
    ssize_t n = send(call.fd, (const char *)bytes + done, length - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return no_host(error, "the host is gone");
    done += (size_t)n;
  }
  return 0;
}

static int more(struct flurry_error *error) {
  if (call.start > 0) memmove(call.bytes, call.bytes + call.start, call.end - call.start);
  call.end -= call.start;
  call.start = 0;
  if (call.end == sizeof call.bytes) return bad_answer(error, "a line that is too long");
  ssize_t n;
  do n = recv(call.fd, call.bytes + call.end, sizeof call.bytes - call.end, 0);
  while (n < 0 && errno == EINTR);
  if (n == 0) errno = 0;
  if (n <= 0) return no_host(error, "the host has ended the call");
  call.end += (size_t)n;
  return 0;
}

/* The next line, without its end; valid until the next call of `more`. */
static char *next_line(struct flurry_error *error) {
  char *end;
  size_t seen = 0;
  while ((end = memchr(call.bytes + call.start + seen, '\n', call.end - call.start - seen)) == NULL) {
    seen = call.end - call.start;
    if (more(error) != 0) return NULL;
  }
  char *line = call.bytes + call.start;
  *end = 0;
  call.start = (size_t)(end + 1 - call.bytes);
  return line;
}

static int take(unsigned char *to, size_t length, struct flurry_error *error) {
  while (length > 0) {
    size_t have = call.end - call.start;
    if (have == 0 && more(error) != 0) return -1;
    have = call.end - call.start;
    if (have > length) have = length;
    memcpy(to, call.bytes + call.start, have);
    call.start += have;
    to += have;
    length -= have;
  }
  return 0;
}

/* Sends a request and reads the line that answers it. NULL, when it is an error, too. */
__attribute__((format(printf, 4, 5)))
static char *ask(const void *body, size_t length, struct flurry_error *error, const char *format, ...) {
  char request[256];
  va_list args;
  va_start(args, format);
  int size = vsnprintf(request, sizeof request, format, args);
  va_end(args);
  if (size < 0 || (size_t)size >= sizeof request) {
    fail(error, "BAD_CALL", "a name is too long");
    return NULL;
  }
  if (connected(error) != 0 || say(request, (size_t)size, error) != 0 || say(body, length, error) != 0) return NULL;
  char *line = next_line(error);
  if (line == NULL || strncmp(line, "error ", 6) != 0) return line;
  char *code = line + 6, *text = strchr(code, ' ');
  if (text != NULL) *text++ = 0;
  fail(error, code, "%s", text != NULL ? text : "");
  if (strcmp(code, "BAD_CALL") == 0) hang_up(); /* the host does so, too */
  return NULL;
}

int flurry_request_ticket(unsigned count, unsigned ms, struct flurry_ticket *ticket, struct flurry_error *error) {
  char life[16] = "";
  if (ms > 0) snprintf(life, sizeof life, " %u", ms);
  char *line = ask(NULL, 0, error, "ticket %u%s\n", count, life);
  if (line == NULL) return -1;
  if (sscanf(line, "ok %32s %u", ticket->name, &ticket->granted) != 2) return bad_answer(error, line);
  return 0;
}

int flurry_clone(const char *ticket, struct flurry_error *error) {
  unsigned id;
  char *line = ask(NULL, 0, error, "clone %s\n", ticket);
  if (line == NULL) return -1;
  return sscanf(line, "ok %u", &id) == 1 ? (int)id : bad_answer(error, line);
}

int flurry_fork(unsigned count, struct flurry_fork *fork, struct flurry_error *error) {
  char *line = ask(NULL, 0, error, "fork %u\n", count);
  if (line == NULL) return -1;
  if (sscanf(line, "ok %u %32s %u", &fork->id, fork->ticket, &fork->granted) != 3) return bad_answer(error, line);
  return 0;
}

int flurry_checkpoint_parent(char *checkpoint, struct flurry_error *error) {
  unsigned id;
  char *line = ask(NULL, 0, error, "checkpoint\n");
  if (line == NULL) return -1;
  return sscanf(line, "ok %u %32s", &id, checkpoint) == 2 ? (int)id : bad_answer(error, line);
}

int flurry_create_clones(const char *checkpoint, const char *ticket, struct flurry_error *error) {
  unsigned count;
  char *line = ask(NULL, 0, error, "create %s %s\n", checkpoint, ticket);
  if (line == NULL) return -1;
  return sscanf(line, "ok %u", &count) == 1 ? (int)count : bad_answer(error, line);
}

int flurry_exit(int status, const void *result, size_t length, struct flurry_error *error) {
  if (length > FLURRY_RESULT_MAX) return fail(error, "BAD_CALL", "a result has at most %d bytes", FLURRY_RESULT_MAX);
  fflush(NULL);
  char *line = ask(result, length, error, "exit %d %zu\n", status, length);
  return line == NULL ? -1 : bad_answer(error, line);
}

static const char *const states[] = {"exited", "killed", "died", "failed"};

const char *flurry_state_name(enum flurry_state state) { return states[state]; }

static int read_files(struct flurry_child *child, unsigned count, struct flurry_error *error) {
  child->files = calloc(count > 0 ? count : 1, sizeof *child->files);
  if (child->files == NULL) return no_host(error, "no memory");
  for (unsigned i = 0; i < count; i++) {
    char *line = next_line(error), *path;
    if (line == NULL) return -1;
    if (strncmp(line, "file ", 5) != 0) return bad_answer(error, line);
    child->files[i].size = strtoull(line + 5, &path, 10);
    if (*path != ' ') return bad_answer(error, line);
    child->files[i].path = strdup(path + 1);
    if (child->files[i].path == NULL) return no_host(error, "no memory");
    child->file_count++;
  }
  return 0;
}

int flurry_next(const char *ticket, long ms, struct flurry_child *child, struct flurry_error *error) {
  char wait[24] = "", state[16];
  unsigned long length;
  unsigned files;
  memset(child, 0, sizeof *child);
  if (ms >= 0) snprintf(wait, sizeof wait, " %ld", ms);
  char *line = ask(NULL, 0, error, "next %s%s\n", ticket, wait);
  if (line == NULL) return -1;
  if (strcmp(line, "end") == 0) return 0;
  if (sscanf(line, "child %u %128s %15s %d %lu %u", &child->id, child->vm, state, &child->status, &length, &files) !=
          6 ||
      length > FLURRY_RESULT_MAX || files > FILES_MAX)
    return bad_answer(error, line);
  int known = -1;
  for (int i = 0; i < 4; i++)
    if (strcmp(state, states[i]) == 0) known = i;
  if (known < 0) return bad_answer(error, line);
  child->state = (enum flurry_state)known;
  child->result = malloc(length + 1);
  if (child->result == NULL) return no_host(error, "no memory");
  child->length = length;
  child->result[length] = 0;
  if (take(child->result, length, error) == 0 && read_files(child, files, error) == 0) return 1;
  flurry_child_free(child);
  return -1;
}

void flurry_child_free(struct flurry_child *child) {
  for (size_t i = 0; i < child->file_count; i++) free(child->files[i].path);
  free(child->files);
  free(child->result);
  memset(child, 0, sizeof *child);
}

int flurry_join(const char *ticket, struct flurry_child **children, size_t *count, struct flurry_error *error) {
  size_t room = 0;
  *children = NULL;
  *count = 0;
  for (;;) {
    if (*count == room) {
      room = room > 0 ? 2 * room : 8;
      struct flurry_child *larger = realloc(*children, room * sizeof **children);
      if (larger == NULL) break;
      *children = larger;
    }
    int got = flurry_next(ticket, -1, &(*children)[*count], error);
    if (got == 0) return 0;
    if (got < 0) break;
    ++*count;
  }
  for (size_t i = 0; i < *count; i++) flurry_child_free(&(*children)[i]);
  free(*children);
  *children = NULL;
  *count = 0;
  return -1;
}

int flurry_kill(const char *ticket, struct flurry_error *error) {
  unsigned count;
  char *line = ask(NULL, 0, error, "kill %s\n", ticket);
  if (line == NULL) return -1;
  return sscanf(line, "ok %u", &count) == 1 ? (int)count : bad_answer(error, line);
}

int flurry_vm(struct flurry_vm *vm, struct flurry_error *error) {
  char *line = ask(NULL, 0, error, "id\n");
  if (line == NULL) return -1;
  if (sscanf(line, "ok %u %128s %u %128s", &vm->id, vm->name, &vm->generation, vm->parent) != 4)
    return bad_answer(error, line);
  if (strcmp(vm->parent, "-") == 0) vm->parent[0] = 0;
  return 0;
}
