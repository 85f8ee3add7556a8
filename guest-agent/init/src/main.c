#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct agent agent;

/* Programs' pipes sit in an epoll of their own, itself watched by the main one: while the host does
 * not read, one call takes all of them out of sight. */
static int main_epoll, pipe_epoll, signals;

void watch(int fd, uint32_t events, uint64_t tag, bool pipes) {
  struct epoll_event e = {.events = events, .data.u64 = tag};
  epoll_ctl(pipes ? pipe_epoll : main_epoll, EPOLL_CTL_ADD, fd, &e);
}

void rewatch(int fd, uint32_t events, uint64_t tag) {
  struct epoll_event e = {.events = events, .data.u64 = tag};
  epoll_ctl(main_epoll, EPOLL_CTL_MOD, fd, &e);
}

void unwatch(int fd, bool pipes) { epoll_ctl(pipes ? pipe_epoll : main_epoll, EPOLL_CTL_DEL, fd, NULL); }

static void pipes_ready(void) {
  struct epoll_event e[16];
  int n = epoll_wait(pipe_epoll, e, 16, 0);
  for (int i = 0; i < n; i++) {
    op_event((unsigned)(e[i].data.u64 >> 2), (uint32_t)(e[i].data.u64 & 3));
    if (!tx_open_for_data()) channel_flush();
  }
}

static void reap(void) {
  struct signalfd_siginfo info[4];
  while (read(signals, info, sizeof info) > 0) continue;
  exec_reap();
}

/* Pipes are looked at only while what they say can be passed on. */
static void show_pipes(void) {
  static bool shown;
  bool want = tx_open_for_data();
  if (shown == want) return;
  shown = want;
  if (want) watch(pipe_epoll, EPOLLIN, TAG_PIPES, false);
  else unwatch(pipe_epoll, false);
}

static void loop(void) {
  bool more = true;
  for (;;) {
    struct epoll_event e[8];
    int n = epoll_wait(main_epoll, e, 8, more ? 0 : -1);
    for (int i = 0; i < n; i++) {
      if (e[i].data.u64 == TAG_CHANNEL) channel_event(e[i].events);
      else if (e[i].data.u64 == TAG_SIGNAL) reap();
      else if (e[i].data.u64 == TAG_TIMER) identity_timer();
      else if (e[i].data.u64 == TAG_HOOKS) hooks_accept();
      else if (e[i].data.u64 == TAG_CALLS) calls_accept();
      else if (e[i].data.u64 >= TAG_HOOK) hooks_event((unsigned)(e[i].data.u64 - TAG_HOOK));
      else pipes_ready();
    }
    more = channel_pump();
    if (ops_pump()) more = true;
    identity_pump();
    channel_flush();
    if (channel_blocked() && !tx_open_for_data()) more = false; /* the channel tells when it has room */
    show_pipes();
    if (agent.stopping) {
      if (channel_blocked()) continue; /* the answer has to leave first */
      stop_now();
    }
  }
}

static void prepare(void) {
  sigset_t chld;
  for (int fd = 0; fd < 3; fd++)
    if (fcntl(fd, F_GETFD) < 0) open("/dev/null", O_RDWR);
  umask(022);
  signal(SIGPIPE, SIG_IGN);
  sigemptyset(&chld);
  sigaddset(&chld, SIGCHLD);
  sigprocmask(SIG_BLOCK, &chld, NULL);
  sigemptyset(&agent.inherited_mask);
  signals = signalfd(-1, &chld, SFD_NONBLOCK | SFD_CLOEXEC);
  main_epoll = epoll_create1(EPOLL_CLOEXEC);
  pipe_epoll = epoll_create1(EPOLL_CLOEXEC);
  watch(signals, EPOLLIN, TAG_SIGNAL, false);
  show_pipes();
}

static int listen_on(const char *path) {
  struct sockaddr_un a = {.sun_family = AF_UNIX};
  if (strlen(path) >= sizeof a.sun_path) {
    errno = ENAMETOOLONG;
    return -1;
  }
  strcpy(a.sun_path, path);
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, 8) != 0) return -1;
  return fd;
}

static void start_identity(void) {
  char path[256];
  ids_boot();
  snprintf(path, sizeof path, "%s/run/flurry/fork.sock", agent.root);
  hooks_listen(path);
  snprintf(path, sizeof path, "%s/run/flurry/vm.sock", agent.root);
  calls_listen(path);
}

static int usage(void) {
  fprintf(stderr, "usage: flurry-init [--set-hostname] [--identity-root DIR] (--channel-fd N | --listen PATH)\n"
                  "As PID 1 it takes no options: it boots the machine and serves the port " FL_PORT_NAME "\n");
  return 2;
}

int main(int argc, char **argv) {
  /* The kernel hands parameters that it does not know to init: only ours count. */
  if (getpid() == 1 && (argc < 2 || strncmp(argv[1], "--", 2) != 0)) {
    agent.is_init = agent.sets_hostname = true;
    agent.root = "";
    int port = boot();
    prepare();
    start_identity();
    agent.ready_ns = now_ns();
    channel_use(CHANNEL_PORT, port);
    loop();
  }
  int at = 1;
  if (at < argc && strcmp(argv[at], "--set-hostname") == 0) {
    agent.sets_hostname = true;
    at++;
  }
  agent.root = "";
  if (at + 1 < argc && strcmp(argv[at], "--identity-root") == 0) {
    agent.root = argv[at + 1];
    at += 2;
  }
  if (argc != at + 2) return usage();
  enum channel_kind kind = CHANNEL_LISTEN;
  int fd;
  prepare();
  if (*agent.root != 0) start_identity();
  if (strcmp(argv[at], "--channel-fd") == 0) {
    kind = CHANNEL_FD;
    fd = atoi(argv[at + 1]);
    if (fcntl(fd, F_SETFL, O_NONBLOCK) != 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) fd = -1;
  } else if (strcmp(argv[at], "--listen") == 0) {
    fd = listen_on(argv[at + 1]);
  } else {
    return usage();
  }
  if (fd < 0) {
    fprintf(stderr, "flurry-init: Cannot use %s %s: %s\n", argv[at], argv[at + 1], strerror(errno));
    return 1;
  }
  if (kind == CHANNEL_LISTEN) dprintf(1, "listening\n"); /* whoever started us need not look for the socket */
  agent.ready_ns = now_ns();
  channel_use(kind, fd);
  loop();
}
