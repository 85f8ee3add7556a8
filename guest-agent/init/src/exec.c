#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define HOOK_FD 3
#define CREDIT_STEP (FL_WINDOW_TO_GUEST / 4)

/* What the vforked child works with. It shares our memory until execve, so `failed` and `step` need
 * no pipe: they are readable as soon as vfork returns here. */
static struct plan {
  char *argv[FL_ARGS_MAX + 1];
  char *env[FL_ARGS_MAX + 4];
  char text[FL_FRAME_MAX + 2 * FL_ARGS_MAX];
  char candidate[2 * FL_PATH_MAX];
  const char *cwd, *path;
  int in, out, err, hook;
  bool has_uid, has_gid;
  uint32_t uid, gid;
  volatile int failed;
  const char *volatile step;
} plan;

static char *keep(char **at, const struct view *v) {
  char *s = *at;
  memcpy(s, v->p, v->len);
  s[v->len] = 0;
  *at += v->len + 1;
  return s;
}

static bool names(const char *entry, const char *prefix) { return strncmp(entry, prefix, strlen(prefix)) == 0; }

static void make_plan(const struct msg *m) {
  char *at = plan.text;
  struct mp_reader items = m->argv;
  struct view v;
  uint32_t n = 0;
  for (uint32_t i = 0; i < m->argv_count && mp_read_str(&items, &v); i++) plan.argv[n++] = keep(&at, &v);
  plan.argv[n] = NULL;
  bool has_home = false;
  plan.path = NULL;
  items = m->env;
  n = 0;
  for (uint32_t i = 0; i < m->env_count && mp_read_str(&items, &v); i++) {
    char *entry = plan.env[n++] = keep(&at, &v);
    if (names(entry, "PATH=")) plan.path = entry + 5;
    if (names(entry, "HOME=")) has_home = true;
  }
  if (plan.path == NULL) {
    plan.env[n++] = "PATH=" DEFAULT_PATH;
    plan.path = DEFAULT_PATH;
  }
  if (!has_home) plan.env[n++] = m->has_uid && m->uid != 0 ? "HOME=/" : "HOME=/root";
  if (m->wants_hook) plan.env[n++] = "FLURRY_FORK_FD=3";
  plan.env[n] = NULL;
  plan.cwd = m->has_cwd ? keep(&at, &m->cwd) : "/";
  plan.has_uid = m->has_uid;
  plan.uid = m->uid;
  plan.has_gid = m->has_gid;
  plan.gid = m->gid;
  plan.failed = 0;
}

/* Only system calls from here on: the parent's memory is ours as well. */
static void fail(const char *step) {
  plan.step = step;
  plan.failed = errno;
  _exit(127);
}

static void search_and_exec(void) {
  const char *name = plan.argv[0];
  if (*name == 0) {
    errno = ENOENT;
    return;
  }
  if (strchr(name, '/') != NULL) {
    execve(name, plan.argv, plan.env);
    return;
  }
  int seen = ENOENT;
  size_t name_len = strlen(name);
  for (const char *dir = plan.path;;) {
    size_t len = strcspn(dir, ":");
    if (len + name_len + 2 <= sizeof plan.candidate) {
      char *c = plan.candidate;
      memcpy(c, dir, len);
      if (len > 0) c[len++] = '/';
      memcpy(c + len, name, name_len + 1);
      execve(c, plan.argv, plan.env);
      /* A file that is there but may not be run is the better news than a later "not found". */
      if (errno != ENOENT && errno != ENOTDIR) seen = errno;
      if (errno != ENOENT && errno != ENOTDIR && errno != EACCES) break;
    }
    dir += strcspn(dir, ":");
    if (*dir++ == 0) break;
  }
  errno = seen;
}

__attribute__((noinline, noreturn)) static void child(void) {
  struct sigaction standard;
  memset(&standard, 0, sizeof standard);
  standard.sa_handler = SIG_DFL;
  sigaction(SIGPIPE, &standard, NULL);
  sigprocmask(SIG_SETMASK, &agent.inherited_mask, NULL);
  setsid();
  if (dup2(plan.in, 0) < 0 || dup2(plan.out, 1) < 0 || dup2(plan.err, 2) < 0) fail("dup2");
  if (plan.hook == HOOK_FD ? fcntl(HOOK_FD, F_SETFD, 0) < 0 : plan.hook >= 0 && dup2(plan.hook, HOOK_FD) < 0)
    fail("dup2");
  /* Raw calls: libc's would signal other threads, and there are none. */
  if ((plan.has_uid || plan.has_gid) && syscall(SYS_setgroups, 0, NULL) != 0) fail("setgroups");
  if (plan.has_gid && syscall(SYS_setgid, plan.gid) != 0) fail("setgid");
  if (plan.has_uid && syscall(SYS_setuid, plan.uid) != 0) fail("setuid");
  if (chdir(plan.cwd) != 0) fail("chdir");
  search_and_exec();
  fail("execve");
  __builtin_unreachable();
}

static void close_pair(int p[2]) {
  if (p[0] >= 0) close(p[0]);
  if (p[1] >= 0) close(p[1]);
}

static void refuse(uint32_t id, int err) {
  const char *object = strcmp(plan.step, "chdir") == 0 ? plan.cwd : plan.argv[0];
  tx_error(id, FL_ERR_SYS, err, "Cannot start \"%.200s\": %s %.200s: %s", plan.argv[0], plan.step, object,
           strerror(err));
}

void exec_start(const struct msg *m) {
  struct op *op = op_new(m->id, OP_EXEC);
  if (op == NULL) return;
  make_plan(m);
  int in[2] = {-1, -1}, out[2] = {-1, -1}, err[2] = {-1, -1}, hook[2] = {-1, -1};
  plan.step = "pipe";
  bool ready = pipe2(out, O_CLOEXEC) == 0 && pipe2(err, O_CLOEXEC) == 0;
  if (ready && m->wants_stdin) {
    plan.step = "memory for stdin";
    ready = pipe2(in, O_CLOEXEC) == 0 && (op->in_buf = malloc(FL_WINDOW_TO_GUEST)) != NULL;
  } else if (ready) {
    plan.step = "/dev/null";
    in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ready = in[0] >= 0;
  }
  if (ready && m->wants_hook) {
    plan.step = "fork hook";
    ready = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, hook) == 0 && hook_adopt(hook[0]);
  }
  if (!ready) {
    refuse(m->id, errno);
    close_pair(hook);
    close_pair(in);
    close_pair(out);
    close_pair(err);
    op_free(op);
    return;
  }
  plan.in = in[0];
  plan.out = out[1];
  plan.err = err[1];
  plan.hook = hook[1];
  /* vfork: no page tables are copied, which is what a fork costs most under emulation. */
  pid_t pid = vfork();
  if (pid == 0) child();
  int failed = plan.failed;
  if (pid < 0) {
    failed = errno;
    plan.step = "vfork";
  }
  close(in[0]);
  close(out[1]);
  close(err[1]);
  if (hook[1] >= 0) close(hook[1]);
  op->fd[FL_STREAM_IN] = in[1];
  op->fd[FL_STREAM_OUT] = out[0];
  op->fd[FL_STREAM_ERR] = err[0];
  if (failed != 0) {
    if (pid > 0) waitpid(pid, NULL, 0);
    refuse(m->id, failed);
    op_free(op);
    return;
  }
  op->pid = pid;
  for (uint32_t s = 0; s < 3; s++)
    if (op->fd[s] >= 0) fcntl(op->fd[s], F_SETFL, O_NONBLOCK);
  struct mp_writer *w = tx_begin(FL_MSG_STARTED, m->id, 1);
  mp_cstr(w, "pid");
  mp_uint(w, (uint64_t)pid);
  tx_end();
  op_poll(op, FL_STREAM_OUT, true);
  op_poll(op, FL_STREAM_ERR, true);
}

void exec_signal_group(const struct op *op, int sig) {
  /* The group outlives its leader while other members run; its number is not given out again
   * before the last of them is gone. */
  if (op->pid > 0) kill(-op->pid, sig);
}

void exec_kill(const struct msg *m) {
  struct op *op = op_find(m->target);
  if (op == NULL || op->kind != OP_EXEC) {
    tx_error(m->id, FL_ERR_NO_SUCH_ID, ESRCH, "No process runs under id %u", m->target);
    return;
  }
  exec_signal_group(op, (int)m->signal);
  tx_plain(FL_MSG_OK, m->id);
}

void exec_output(struct op *op, uint32_t stream) {
  uint32_t room = op->credit[stream];
  if (room == 0) {
    op_poll(op, stream, false); /* the pipe fills and the program waits, until the host reads on */
    return;
  }
  uint8_t *at = tx_data_room(&room);
  if (at == NULL) return; /* main stops watching pipes while the gate is shut */
  ssize_t n = read(op->fd[stream], at, room);
  if (n > 0) {
    op->credit[stream] -= (uint32_t)n;
    tx_data(op->id, stream, (uint32_t)n);
  } else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
    exec_close_stream(op, stream);
    tx_stream(FL_MSG_END, op->id, stream);
    ops_finish(op);
  }
}

static void input_gone(struct op *op) {
  exec_close_stream(op, FL_STREAM_IN);
  op->in_len = op->in_head = 0;
  if (!op->in_gone && !op->in_ended) tx_stream(FL_MSG_CANCEL, op->id, FL_STREAM_IN);
  op->in_gone = true; /* data that is on its way already is dropped */
  if (op->kind == OP_CALL) ops_finish(op);
}

/* Writes what is buffered; the buffer is a ring as large as the window, so it cannot overflow. */
void exec_input(struct op *op) {
  while (op->fd[FL_STREAM_IN] >= 0 && op->in_len > 0) {
    uint32_t run = FL_WINDOW_TO_GUEST - op->in_head;
    if (run > op->in_len) run = op->in_len;
    ssize_t n = write(op->fd[FL_STREAM_IN], op->in_buf + op->in_head, run);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      op_poll(op, FL_STREAM_IN, true);
      return;
    }
    if (n < 0) {
      input_gone(op);
      return;
    }
    op->in_head = (op->in_head + (uint32_t)n) % FL_WINDOW_TO_GUEST;
    op->in_len -= (uint32_t)n;
    op->in_owed += (uint32_t)n;
  }
  op_poll(op, FL_STREAM_IN, false);
  if (op->in_owed >= CREDIT_STEP && !op->in_ended) {
    op->credit[FL_STREAM_IN] += op->in_owed;
    tx_credit(op->id, FL_STREAM_IN, op->in_owed);
    op->in_owed = 0;
  }
  if (!op->in_ended) return;
  if (op->kind == OP_CALL) shutdown(op->fd[FL_STREAM_IN], SHUT_WR); /* its other direction is another descriptor */
  exec_close_stream(op, FL_STREAM_IN);
  ops_finish(op);
}

void exec_input_data(struct op *op, const struct view *data) {
  if (op->fd[FL_STREAM_IN] < 0 || op->in_buf == NULL) {
    input_gone(op);
    return;
  }
  uint32_t tail = (op->in_head + op->in_len) % FL_WINDOW_TO_GUEST;
  uint32_t run = FL_WINDOW_TO_GUEST - tail;
  if (run > data->len) run = data->len;
  memcpy(op->in_buf + tail, data->p, run);
  memcpy(op->in_buf, data->p + run, data->len - run);
  op->in_len += data->len;
  exec_input(op);
}

void exec_reap(void) {
  int status;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    for (unsigned i = 0; ops_live > 0 && i < OPS_SIZE; i++) {
      struct op *op = &ops[i];
      if (op->kind != OP_EXEC || op->pid != pid || op->exited) continue;
      op->exited = true;
      struct mp_writer *w = tx_begin(FL_MSG_EXIT, op->id, 1);
      mp_cstr(w, WIFSIGNALED(status) ? "signal" : "code");
      mp_uint(w, (uint64_t)(WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status)));
      tx_end();
      ops_finish(op);
      break;
    }
  }
}
