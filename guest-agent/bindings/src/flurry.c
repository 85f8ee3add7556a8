#include "flurry.h"

#include <errno.h>
#include <limits.h>
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

/* Whether the connection of the last call serves: nothing is said on it without a question, unless it is over. */
static bool serves(void) {
  char byte;
  if (call.owner != getpid() || call.start != call.end) return false;
  return recv(call.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EINTR);
}

static int connected(struct flurry_error *error) {
  const char *path = getenv("FLURRY_VM_SOCKET");
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (serves()) return 0;
  hang_up(); /* the process that it may have come from keeps its own */
  if (path == NULL || *path == 0) path = SOCKET_PATH;
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

/* Whether all was taken. If not, the host may have said why, and ended the call. */
static bool say(const void *bytes, size_t length) {
  for (size_t done = 0; done < length;) {
    ssize_t n = send(call.fd, (const char *)bytes + done, length - done, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return false;
    done += (size_t)n;
  }
  return true;
}

static int more(struct flurry_error *error) {
  if (call.start > 0) memmove(call.bytes, call.bytes + call.start, call.end - call.start);
  call.end -= call.start;
  call.start = 0;
  if (call.end == sizeof call.bytes) return bad_answer(error, "a line without an end");
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
  call.start = (size_t)(end + 1 - call.bytes);
  *end = 0;
  if (line + strlen(line) == end) return line;
  bad_answer(error, "a line with a zero in it");
  return NULL;
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

/* After some errors the host ends the call, and may do so a moment later. */
static bool ends_call(const char *code) {
  return strcmp(code, "BAD_CALL") == 0 || strcmp(code, "FORK_DENIED") == 0 || strcmp(code, "FORKED") == 0;
}

/* Sends a request and reads the line that answers it. NULL, when it is an error, too. */
__attribute__((format(printf, 4, 5)))
static char *ask(const void *body, size_t length, struct flurry_error *error, const char *format, ...) {
  char request[256];
  va_list args;
  va_start(args, format);
  int size = vsnprintf(request, sizeof request, format, args);
  va_end(args);
  if (connected(error) != 0) return NULL;
  bool said = say(request, (size_t)size) && say(body, length);
  char *line = next_line(error);
  if (line == NULL || strncmp(line, "error ", 6) != 0) {
    if (line == NULL || said) return line;
    bad_answer(error, line);
    return NULL;
  }
  char *code = line + 6, *text = strchr(code, ' ');
  if (text != NULL) *text++ = 0;
  fail(error, code, "%s", text != NULL ? text : "");
  if (!said || ends_call(code)) hang_up();
  return NULL;
}

/* Takes the next word of a line. */
static bool word(const char **line, char *to, size_t size) {
  size_t length = strcspn(*line, " ");
  if (length == 0 || length >= size) return false;
  memcpy(to, *line, length);
  to[length] = 0;
  *line += length + ((*line)[length] == ' ');
  return true;
}

static bool number(const char **line, unsigned long long most, unsigned long long *value) {
  char text[20];
  if (!word(line, text, sizeof text) || strspn(text, "0123456789") != strlen(text)) return false;
  *value = strtoull(text, NULL, 10);
  return *value <= most;
}

static bool small(const char **line, unsigned *value) {
  unsigned long long wide;
  if (!number(line, INT_MAX, &wide)) return false;
  *value = (unsigned)wide;
  return true;
}

static bool ok(const char **line) {
  char first[3];
  return word(line, first, sizeof first) && strcmp(first, "ok") == 0;
}

/* Whether it may be the name of a ticket or a checkpoint. */
static bool is_name(const char *text) {
  size_t length = strspn(text, "abcdefghijklmnopqrstuvwxyz0123456789");
  return length > 0 && length < FLURRY_NAME_MAX && text[length] == 0;
}

static bool name(const char **line, char *to) { return word(line, to, FLURRY_NAME_MAX) && is_name(to); }

/* A name that goes into a request must be one word. */
static int named(const char *name, struct flurry_error *error) {
  if (is_name(name)) return 0;
  return fail(error, "BAD_CALL", "\"%.40s\" is no name of a ticket or checkpoint", name);
}

int flurry_request_ticket(unsigned count, unsigned ms, struct flurry_ticket *ticket, struct flurry_error *error) {
  char life[16] = "";
  unsigned long long left;
  if (ms > 0) snprintf(life, sizeof life, " %u", ms);
  const char *line = ask(NULL, 0, error, "ticket %u%s\n", count, life), *at = line;
  if (line == NULL) return -1;
  if (!ok(&at) || !name(&at, ticket->name) || !small(&at, &ticket->granted) ||
      !number(&at, ULLONG_MAX, &left) || *at != 0 || ticket->granted < 1 || ticket->granted > count)
    return bad_answer(error, line);
  return 0;
}

int flurry_clone(const char *ticket, struct flurry_error *error) {
  unsigned id, granted;
  if (named(ticket, error) != 0) return -1;
  const char *line = ask(NULL, 0, error, "clone %s\n", ticket), *at = line;
  if (line == NULL) return -1;
  if (!ok(&at) || !small(&at, &id) || !small(&at, &granted) || *at != 0 || id > granted) return bad_answer(error, line);
  return (int)id;
}

int flurry_fork(unsigned count, struct flurry_fork *fork, struct flurry_error *error) {
  const char *line = ask(NULL, 0, error, "fork %u\n", count), *at = line;
  if (line == NULL) return -1;
  if (!ok(&at) || !small(&at, &fork->id) || !name(&at, fork->ticket) ||
      !small(&at, &fork->granted) || *at != 0 || fork->id > fork->granted || fork->granted < 1 ||
      fork->granted > count)
    return bad_answer(error, line);
  return 0;
}

int flurry_checkpoint_parent(char *checkpoint, struct flurry_error *error) {
  unsigned id;
  const char *line = ask(NULL, 0, error, "checkpoint\n"), *at = line;
  if (line == NULL) return -1;
  if (!ok(&at) || !small(&at, &id) || !name(&at, checkpoint) || *at != 0)
    return bad_answer(error, line);
  return (int)id;
}

/* `ok N`, for a request that has been made. */
static int counted(const char *line, struct flurry_error *error) {
  const char *at = line;
  unsigned count;
  if (line == NULL) return -1;
  return ok(&at) && small(&at, &count) && *at == 0 ? (int)count : bad_answer(error, line);
}

int flurry_create_clones(const char *checkpoint, const char *ticket, struct flurry_error *error) {
  if (named(checkpoint, error) != 0 || named(ticket, error) != 0) return -1;
  return counted(ask(NULL, 0, error, "create %s %s\n", checkpoint, ticket), error);
}

int flurry_exit(int status, const void *result, size_t length, struct flurry_error *error) {
  if (status < 0 || status > 255) return fail(error, "BAD_CALL", "a status is from 0 to 255, not %d", status);
  if (length > FLURRY_RESULT_MAX) return fail(error, "BAD_CALL", "a result has at most %d bytes", FLURRY_RESULT_MAX);
  fflush(NULL);
  char *line = ask(result, length, error, "exit %d %zu\n", status, length);
  return line == NULL ? -1 : bad_answer(error, line);
}

static const char *const states[] = {"exited", "killed", "died", "failed"};

const char *flurry_state_name(enum flurry_state state) { return states[state]; }

static bool known_state(const char *name, enum flurry_state *state) {
  for (int i = 0; i < 4; i++) {
    if (strcmp(name, states[i]) != 0) continue;
    *state = (enum flurry_state)i;
    return true;
  }
  return false;
}

static int read_files(struct flurry_child *child, unsigned count, struct flurry_error *error) {
  child->files = calloc(count > 0 ? count : 1, sizeof *child->files);
  if (child->files == NULL) return no_host(error, "no memory");
  for (unsigned i = 0; i < count; i++) {
    const char *line = next_line(error), *at = line;
    char first[5];
    if (line == NULL) return -1;
    if (!word(&at, first, sizeof first) || strcmp(first, "file") != 0 ||
        !number(&at, ULLONG_MAX, &child->files[i].size) || *at != '/')
      return bad_answer(error, line);
    child->files[i].path = strdup(at);
    if (child->files[i].path == NULL) return no_host(error, "no memory");
    child->file_count++;
  }
  return 0;
}

int flurry_next(const char *ticket, long ms, struct flurry_child *child, struct flurry_error *error) {
  char wait[24] = "", first[6], state[7];
  unsigned long long length, files;
  unsigned status;
  memset(child, 0, sizeof *child);
  if (named(ticket, error) != 0) return -1;
  if (ms >= 0) snprintf(wait, sizeof wait, " %ld", ms);
  const char *line = ask(NULL, 0, error, "next %s%s\n", ticket, wait), *at = line;
  if (line == NULL) return -1;
  if (strcmp(line, "end") == 0) return 0;
  if (!word(&at, first, sizeof first) || strcmp(first, "child") != 0 || !small(&at, &child->id) ||
      !word(&at, child->vm, sizeof child->vm) || !word(&at, state, sizeof state) ||
      !known_state(state, &child->state) || !small(&at, &status) || status > 255 ||
      !number(&at, FLURRY_RESULT_MAX, &length) || !number(&at, FILES_MAX, &files) || *at != 0)
    return bad_answer(error, line);
  child->status = (int)status;
  child->result = malloc(length + 1);
  if (child->result == NULL) return no_host(error, "no memory");
  child->length = length;
  child->result[length] = 0;
  if (take(child->result, length, error) == 0 && read_files(child, (unsigned)files, error) == 0) return 1;
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
  if (named(ticket, error) != 0) return -1;
  return counted(ask(NULL, 0, error, "kill %s\n", ticket), error);
}

int flurry_vm(struct flurry_vm *vm, struct flurry_error *error) {
  const char *line = ask(NULL, 0, error, "id\n"), *at = line;
  if (line == NULL) return -1;
  if (!ok(&at) || !small(&at, &vm->id) || !word(&at, vm->name, sizeof vm->name) || !small(&at, &vm->generation) ||
      !word(&at, vm->parent, sizeof vm->parent) || *at != 0)
    return bad_answer(error, line);
  if (strcmp(vm->parent, "-") == 0) vm->parent[0] = 0;
  return 0;
}
