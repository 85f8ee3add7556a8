#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Programs of the guest that ask something of the host: PROTOCOL.md, "Calls". Each connection is an operation
 * whose id the agent has chosen. Its bytes are passed on as a program's are; what they mean is the host's business. */
static int listener = -1;
static uint32_t next_id;

void calls_listen(const char *path) {
  listener = socket_listen(path);
  if (listener >= 0) watch(listener, EPOLLIN, TAG_CALLS, false);
}

static void announce(const struct op *op) {
  struct mp_writer *w = tx_begin(FL_MSG_CALL, op->id, 3);
  mp_cstr(w, "pid");
  mp_uint(w, (uint64_t)op->pid);
  mp_cstr(w, "uid");
  mp_uint(w, op->uid);
  mp_cstr(w, "gid");
  mp_uint(w, op->gid);
  tx_end();
}

static void refuse(int fd, const char *line) {
  /* A fresh connection takes a line; if not, its end says enough. */
  if (send(fd, line, strlen(line), MSG_DONTWAIT | MSG_NOSIGNAL) < 0) dprintf(2, "flurry-init: A call was refused\n");
  close(fd);
}

void calls_accept(void) {
  struct ucred who;
  socklen_t size = sizeof who;
  int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return;
  if (calls_live >= FL_CALLS_MAX || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0) {
    refuse(fd, "error BAD_CALL Too many connections are open\n");
    return;
  }
  do next_id = (next_id + 1) % FL_CALL_IDS;
  while (op_find(FL_CALL_IDS + next_id) != NULL);
  struct op *op = op_new(FL_CALL_IDS + next_id, OP_CALL);
  int in = op != NULL ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;
  if (in < 0 || (op->in_buf = malloc(FL_WINDOW_TO_GUEST)) == NULL) {
    if (in >= 0) close(in);
    if (op != NULL) op_free(op);
    refuse(fd, "error BAD_CALL The agent cannot take another connection\n");
    return;
  }
  op->fd[FL_STREAM_IN] = in;
  op->fd[FL_STREAM_OUT] = fd;
  op->pid = who.pid;
  op->uid = who.uid;
  op->gid = who.gid;
  announce(op);
  op_poll(op, FL_STREAM_OUT, true);
}

/* To the host of a fork, which has not heard of them. */
void calls_announce(void) {
  for (unsigned i = 0; ops_live > 0 && i < OPS_SIZE; i++)
    if (ops[i].kind == OP_CALL) announce(&ops[i]);
}
