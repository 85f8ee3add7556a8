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
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

/* Programs that have something of their own to renew in a fork. Each has a connection on which lines go
 * to and fro (PROTOCOL.md, "Hooks"). They are the guest's own and may be hostile: no line is waited for
 * without a limit, and a connection that makes no sense is closed. */
struct hook {
  int fd; /* -1: the place is free, unless its failure is still to be told */
  int pidfd; /* its process, also when the number is another's by now; -1: not registered */
  pid_t pid;
  int sig; /* raised in it with each `prepare`; 0: none */
  enum { NEW, REGISTERED, ASKED, READY, TOLD, DONE, FAILED } state;
  bool takes_part; /* was told to prepare, and not to go on since */
  bool is_busy;    /* said so: it does not wait for a word to go on */
  bool late;       /* it failed by not answering in time */
  unsigned owed;   /* answers that nobody waits for any more: they come before any other */
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
    for (unsigned i = 0; i < FL_HOOKS_MAX; i++) hooks[i].fd = hooks[i].pidfd = -1;
  begun = true;
  for (unsigned i = 0; i < FL_HOOKS_MAX; i++)
    if (hooks[i].fd < 0 && hooks[i].state != FAILED) return &hooks[i];
  return NULL;
}

/* With each message the kernel says who sent it; what is accepted inherits that. */
static bool shows_senders(int fd) {
  int on = 1;
  return setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0;
}

int socket_listen(const char *path) {
  struct sockaddr_un a = {.sun_family = AF_UNIX};
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  bool fits = strlen(path) < sizeof a.sun_path;
  if (fits) strcpy(a.sun_path, path);
  unlink(path);
  if (!fits || fd < 0 || !shows_senders(fd) || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 ||
      chmod(path, 0666) != 0 || listen(fd, 16) != 0) {
    dprintf(2, "flurry-init: Cannot listen on %s: %s\n", path, fits ? strerror(errno) : "it is too long");
    if (fd >= 0) close(fd);
    return -1;
  }
  return fd;
}

void hooks_listen(const char *path) {
  listener = socket_listen(path);
  if (listener >= 0) watch(listener, EPOLLIN, TAG_HOOKS, false);
}

bool hook_adopt(int fd) {
  struct hook *h = place();
  if (h == NULL) errno = EMFILE;
  if (h == NULL || !shows_senders(fd)) return false;
  memset(h, 0, sizeof *h);
  h->fd = fd;
  h->pidfd = -1;
  watch(fd, EPOLLIN, TAG_HOOK + (uint64_t)(h - hooks), false);
  return true;
}

void hooks_accept(void) {
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd >= 0 && !hook_adopt(fd)) close(fd);
}

static void close_pidfd(struct hook *h) {
  if (h->pidfd >= 0) close(h->pidfd);
  h->pidfd = -1;
}

static void drop(struct hook *h, const char *why) {
  if (h->fd < 0) return;
  unwatch(h->fd, false);
  close(h->fd);
  close_pidfd(h);
  h->fd = -1;
  h->fill = 0;
  /* Between `prepare` and `go` its end is a failure of the fork, which is told. */
  bool failed = h->state == FAILED;
  h->state = h->takes_part ? FAILED : NEW;
  if (h->takes_part && !failed) snprintf(h->text, sizeof h->text, "%s", why);
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

/* `from` is who sent the line: a hook speaks for its own process alone, since it keeps that out of the
 * freezer and has signals sent to it. */
static void register_hook(struct hook *h, const char *rest, pid_t from) {
  static const char allowed[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-";
  size_t len = strspn(rest, allowed);
  char *end = NULL;
  long pid = len > 0 && len < sizeof h->name && rest[len] == ' ' ? strtol(rest + len + 1, &end, 10) : 0;
  long sig = end != NULL && *end == ' ' ? strtol(end + 1, &end, 10) : 0;
  const char *problem = NULL;
  if (pid <= 1 || end == NULL || *end != 0 || sig < 0 || sig > 64) problem = "error expected: hook NAME PID [SIGNAL]\n";
  else if (pid != from) problem = "error the PID is not that of the process that says so\n";
  else if ((h->pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0)) < 0) problem = "error the process is gone\n";
  if (problem != NULL) {
    say(h, problem);
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
static void line(struct hook *h, const char *text, pid_t from) {
  const char *rest;
  if (h->state == NEW && takes(text, "hook", &rest)) {
    register_hook(h, rest, from);
  } else if (h->owed > 0) {
    h->owed--; /* of an earlier fork, which did not wait for it */
  } else if (h->late) {
    h->late = false; /* of this one, but it has failed */
  } else if (h->state == ASKED && takes(text, "ready", &rest)) {
    h->state = READY;
  } else if (h->state == ASKED && takes(text, "busy", &rest)) {
    h->state = FAILED;
    h->is_busy = true;
    snprintf(h->text, sizeof h->text, "%s", rest);
  } else if (h->state == TOLD && (takes(text, "done", &rest) || takes(text, "failed", &rest))) {
    h->state = *text == 'd' ? DONE : FAILED;
    snprintf(h->text, sizeof h->text, "%s", rest);
  } else {
    drop(h, "it said what was not its turn to say");
  }
}

/* What there is to read, and who sent it: once it is registered, that is not asked any more. */
static ssize_t take(struct hook *h, pid_t *from) {
  union {
    struct cmsghdr head;
    char bytes[CMSG_SPACE(sizeof(struct ucred))];
  } control;
  struct iovec part = {h->in + h->fill, sizeof h->in - h->fill};
  struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  *from = 0;
  if (h->state != NEW) return recv(h->fd, part.iov_base, part.iov_len, MSG_DONTWAIT);
  ssize_t n = recvmsg(h->fd, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
  if (c != NULL && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
    struct ucred who;
    memcpy(&who, CMSG_DATA(c), sizeof who);
    *from = who.pid;
  }
  return n;
}

void hooks_event(unsigned slot) {
  pid_t from;
  if (slot >= FL_HOOKS_MAX || hooks[slot].fd < 0) return;
  struct hook *h = &hooks[slot];
  ssize_t n = take(h, &from);
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
    line(h, text, from);
  }
  if (h->fd >= 0 && h->fill == sizeof h->in) drop(h, "it sent a line that is too long");
}

unsigned hooks_count(void) {
  unsigned n = 0;
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) n += hooks[i].takes_part;
  return n;
}

bool hooks_has(pid_t pid) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++)
    if (hooks[i].fd >= 0 && hooks[i].state == READY && hooks[i].pid == pid) return true;
  return false;
}

void hooks_prepare(void) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    struct hook *h = &hooks[i];
    if (h->fd < 0 || h->state == NEW) continue;
    if (syscall(SYS_pidfd_send_signal, h->pidfd, 0, NULL, 0) != 0) {
      drop(h, ""); /* somebody else holds its connection: there is no such process to wait for */
      continue;
    }
    h->state = ASKED;
    h->takes_part = true;
    h->is_busy = false;
    h->text[0] = 0;
    say(h, "prepare\n");
    if (h->fd >= 0 && h->sig > 0) syscall(SYS_pidfd_send_signal, h->pidfd, h->sig, NULL, 0);
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
    if (!h->takes_part) continue;
    h->takes_part = false;
    if (h->fd < 0) {
      h->state = NEW; /* a failure has been told by now */
      continue;
    }
    bool waits = !h->is_busy;
    if (h->late || h->state == ASKED || h->state == TOLD) h->owed++;
    h->late = false;
    h->state = REGISTERED;
    if (waits) say(h, word);
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
    h->late = true;
    snprintf(h->text, sizeof h->text, "it has not answered in time");
  }
}

bool hooks_failure(char *text, size_t size) {
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    const struct hook *h = &hooks[i];
    if (!h->takes_part || h->state != FAILED) continue;
    snprintf(text, size, "%s (process %d): %s", h->name, (int)h->pid, h->text);
    return true;
  }
  return false;
}

void hooks_write(struct mp_writer *w) {
  mp_array(w, hooks_count());
  for (unsigned i = 0; begun && i < FL_HOOKS_MAX; i++) {
    const struct hook *h = &hooks[i];
    if (!h->takes_part) continue;
    mp_array(w, 4);
    mp_cstr(w, h->name);
    mp_uint(w, (uint64_t)h->pid);
    mp_bool(w, h->state == DONE || LIES("hooks"));
    mp_cstr(w, LIES("hooks") ? "renewed" : h->text);
  }
}
