#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Programs that have something of their own to renew in a fork. Each has a connection on which lines go
 * to and fro (PROTOCOL.md, "Hooks"). They are the guest's own and may be hostile: no line is waited for
 * without a limit, and a connection that makes no sense is closed. */
struct hook {
  int fd; /* -1: the place is free */
  pid_t pid;
  int sig; /* raised in it with each `prepare`; 0: none */
  enum { NEW, REGISTERED, ASKED, READY, TOLD, DONE, FAILED } state;
  char name[33];
  char text[HOOK_TEXT_MAX + 1]; /* its evidence, or why it failed */
  char in[HOOK_LINE_MAX];
  unsigned fill;
};

static struct hook hooks[FL_HOOKS_MAX];
static bool begun;
static int listener = -1;

static struct hook *place(void) {
  if (!begun)
    for (unsigned i = 0; i < FL_HOOKS_MAX; i++) hooks[i].fd = -1;
  begun = true;
  for (unsigned i = 0; i < FL_HOOKS_MAX; i++)
    if (hooks[i].fd < 0 && hooks[i].state != FAILED) return &hooks[i];
  return NULL;
}

void hooks_listen(const char *path) {
  struct sockaddr_un a = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof a.sun_path) return;
  strcpy(a.sun_path, path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  unlink(path);
  if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || chmod(path, 0666) != 0 || listen(fd, 16) != 0) {
    if (fd >= 0) close(fd);
    return; /* who connects is told so by the kernel */
  }
  listener = fd;
  watch(fd, EPOLLIN, TAG_HOOKS, false);
}

bool hook_adopt(int fd) {
  struct hook *h = place();
  if (h == NULL) return false;
  memset(h, 0, sizeof *h);
  h->fd = fd;
  watch(fd, EPOLLIN, TAG_HOOK + (uint64_t)(h - hooks), false);
  return true;
}

void hooks_accept(void) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0 && !hook_adopt(fd)) close(fd);
}

static void drop(struct hook *h, const char *why) {
  if (h->fd < 0) return;
  unwatch(h->fd, false);
  close(h->fd);
  h->fd = -1;
  h->fill = 0;
  /* Between `prepare` and `go` its end is a failure of the fork, which is told. */
  bool matters = h->state == ASKED || h->state == READY || h->state == TOLD || h->state == DONE;
  h->state = matters ? FAILED : NEW;
  if (matters) snprintf(h->text, sizeof h->text, "%s", why);
}

static void say(struct hook *h, const char *line) {
  size_t len = strlen(line);
  if (h->fd >= 0 && send(h->fd, line, len, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)len)
    drop(h, "its connection takes nothing");
}

static bool takes(const char *line, const char *word, const char **rest) {
  size_t len = strlen(word);
  if (strncmp(line, word, len) != 0 || (line[len] != 0 && line[len] != ' ')) return false;
  *rest = line[len] == ' ' ? line + len + 1 : line + len;
  return true;
}

static void register_hook(struct hook *h, const char *rest) {
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
  size_t len = strspn(rest, allowed);
  char *end = NULL;
  long pid = len > 0 && len < sizeof h->name && rest[len] == ' ' ? strtol(rest + len + 1, &end, 10) : 0;
  long sig = end != NULL && *end == ' ' ? strtol(end + 1, &end, 10) : 0;
  if (pid <= 1 || end == NULL || *end != 0 || sig < 0 || sig > 64 || kill((pid_t)pid, 0) != 0) {
    say(h, "error expected: hook NAME PID [SIGNAL]\n");
    drop(h, "");
    return;
  }
  memcpy(h->name, rest, len);
  h->name[len] = 0;
  h->pid = (pid_t)pid;
  h->sig = (int)sig;
  h->state = REGISTERED;
  say(h, "ok\n");
}

/* One line, without its end. What is said out of turn ends the connection. */
static void line(struct hook *h, const char *text) {
  const char *rest;
  if (h->state == NEW && takes(text, "hook", &rest)) {
    register_hook(h, rest);
  } else if (h->state == ASKED && takes(text, "ready", &rest)) {
    h->state = READY;
  } else if (h->state == ASKED && takes(text, "busy", &rest)) {
    h->state = FAILED;
    snprintf(h->text, sizeof h->text, "%s", rest);
  } else if (h->state == TOLD && (takes(text, "done", &rest) || takes(text, "failed", &rest))) {
    h->state = *text == 'd' ? DONE : FAILED;
    snprintf(h->text, sizeof h->text, "%s", rest);
  } else {
    drop(h, "it said what was not its turn to say");
  }
}

void hooks_event(unsigned slot) {
  struct hook *h = &hooks[slot];
  if (slot >= FL_HOOKS_MAX || h->fd < 0) return;
  ssize_t n = recv(h->fd, h->in + h->fill, sizeof h->in - h->fill, MSG_DONTWAIT);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (n <= 0) {
    drop(h, "it has ended");
    return;
  }
  h->fill += (unsigned)n;
  for (char *end; h->fd >= 0 && (end = memchr(h->in, '\n', h->fill)) != NULL;) {
    char text[HOOK_LINE_MAX];
    size_t len = (size_t)(end - h->in);
    memcpy(text, h->in, len);
    text[len] = 0;
    h->fill -= (unsigned)(len + 1);
    memmove(h->in, end + 1, h->fill);
    line(h, text);
  }
  if (h->fd >= 0 && h->fill == sizeof h->in) drop(h, "it sent a line that is too long");
}

static bool counts(const struct hook *h) { return h->state == FAILED || (h->fd >= 0 && h->state != NEW); }

unsigned hooks_count(void) {
  unsigned n = 0;
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) n += counts(&hooks[i]);
  return n;
}

bool hooks_has(pid_t pid) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++)
    if (hooks[i].fd >= 0 && hooks[i].state != NEW && hooks[i].pid == pid) return true;
  return false;
}

void hooks_prepare(void) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    struct hook *h = &hooks[i];
    if (h->fd < 0 || h->state == NEW) continue;
    h->state = ASKED;
    h->text[0] = 0;
    say(h, "prepare\n");
    if (h->fd >= 0 && h->sig > 0) kill(h->pid, h->sig);
  }
}

void hooks_forked(void) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    struct hook *h = &hooks[i];
    if (h->fd < 0 || h->state != READY) continue;
    uint8_t seed[32];
    char text[HOOK_LINE_MAX], hex[2 * sizeof seed + 1];
    if (getrandom(seed, sizeof seed, 0) != (ssize_t)sizeof seed) memset(seed, 0, sizeof seed);
    for (unsigned at = 0; at < sizeof seed; at++) snprintf(hex + 2 * at, 3, "%02x", seed[at]);
    snprintf(text, sizeof text, "forked %s %u %s\n", agent.vm_id, agent.index, hex);
    h->state = TOLD;
    h->text[0] = 0;
    say(h, text);
  }
}

void hooks_go(const char *word) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    struct hook *h = &hooks[i];
    if (h->fd < 0) {
      h->state = NEW; /* a failure has been told by now */
    } else if (h->state != NEW && h->state != REGISTERED) {
      h->state = REGISTERED;
      say(h, word);
    }
  }
}

bool hooks_waiting(void) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++)
    if (hooks[i].fd >= 0 && (hooks[i].state == ASKED || hooks[i].state == TOLD)) return true;
  return false;
}

void hooks_give_up(void) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    struct hook *h = &hooks[i];
    if (h->fd < 0 || (h->state != ASKED && h->state != TOLD)) continue;
    h->state = FAILED;
    snprintf(h->text, sizeof h->text, "it has not answered in time");
  }
}

bool hooks_failure(char *text, size_t size) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    const struct hook *h = &hooks[i];
    if (h->state != FAILED) continue;
    snprintf(text, size, "%s (process %d): %s", h->name, (int)h->pid, h->text);
    return true;
  }
  return false;
}

void hooks_write(struct mp_writer *w) {
  mp_array(w, hooks_count());
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    const struct hook *h = &hooks[i];
    if (!counts(h)) continue;
    mp_array(w, 4);
    mp_cstr(w, h->name);
    mp_uint(w, (uint64_t)h->pid);
    mp_bool(w, h->state == DONE);
    mp_cstr(w, h->text);
  }
}
