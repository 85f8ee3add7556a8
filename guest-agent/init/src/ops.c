#include "agent.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

struct op ops[OPS_SIZE];
unsigned ops_live, calls_live;

struct op *op_find(uint32_t id) {
  for (unsigned i = 0; ops_live > 0 && i < OPS_SIZE; i++)
    if (ops[i].kind != OP_FREE && ops[i].id == id) return &ops[i];
  return NULL;
}

struct op *op_new(uint32_t id, enum op_kind kind) {
  if (op_find(id) != NULL) {
    tx_error(id, FL_ERR_ID_IN_USE, 0, "An operation with id %u is running already", id);
    return NULL;
  }
  bool is_full = kind == OP_CALL ? calls_live >= FL_CALLS_MAX : ops_live - calls_live >= FL_OPS_MAX;
  for (unsigned i = 0; !is_full && i < OPS_SIZE; i++) {
    struct op *op = &ops[i];
    if (op->kind != OP_FREE) continue;
    memset(op, 0, sizeof *op);
    op->kind = kind;
    op->id = id;
    op->fd[0] = op->fd[1] = op->fd[2] = -1;
    op->credit[FL_STREAM_IN] = FL_WINDOW_TO_GUEST;
    op->credit[FL_STREAM_OUT] = op->credit[FL_STREAM_ERR] = FL_WINDOW_TO_HOST;
    ops_live++;
    if (kind == OP_CALL) calls_live++;
    return op;
  }
  tx_error(id, FL_ERR_LIMIT, 0, "%d operations are running already", FL_OPS_MAX);
  return NULL;
}

static uint64_t tag(const struct op *op, uint32_t stream) {
  return (uint64_t)((unsigned)(op - ops) << 2 | stream);
}

void op_poll(struct op *op, uint32_t stream, bool on) {
  if (op->polled[stream] == on || op->fd[stream] < 0) return;
  op->polled[stream] = on;
  if (on) watch(op->fd[stream], stream == FL_STREAM_IN ? EPOLLOUT : EPOLLIN, tag(op, stream), true);
  else unwatch(op->fd[stream], true);
}

static void close_fd(struct op *op, uint32_t stream) {
  if (op->fd[stream] < 0) return;
  op_poll(op, stream, false);
  close(op->fd[stream]);
  op->fd[stream] = -1;
}

void exec_close_stream(struct op *op, uint32_t stream) { close_fd(op, stream); }

void op_free(struct op *op) {
  for (uint32_t s = 0; s < 3; s++) close_fd(op, s);
  if (op->temp != NULL) unlink(op->temp);
  free(op->in_buf);
  free(op->path);
  free(op->temp);
  list_free(op->walk);
  if (op->kind == OP_CALL) calls_live--;
  memset(op, 0, sizeof *op);
  ops_live--;
}

void op_event(unsigned slot, uint32_t stream) {
  if (slot >= OPS_SIZE || stream > FL_STREAM_ERR) return;
  struct op *op = &ops[slot];
  /* An earlier event of the same batch may have ended this operation. */
  if ((op->kind != OP_EXEC && op->kind != OP_CALL) || !op->polled[stream]) return;
  if (stream == FL_STREAM_IN) exec_input(op);
  else exec_output(op, stream);
}

/* For ids that are gone, stream messages are silently dropped: they crossed the end on their way. */
void op_data(const struct msg *m) {
  struct op *op = op_find(m->id);
  if (op == NULL) return;
  if (m->stream != FL_STREAM_IN || op->kind == OP_GET || op->kind == OP_LIST || op->in_ended) {
    tx_error(m->id, FL_ERR_FLOW, 0, "Stream %u of operation %u takes no data", m->stream, m->id);
  } else if (m->data.len == 0 || m->data.len > op->credit[FL_STREAM_IN]) {
    tx_error(m->id, FL_ERR_FLOW, 0, "%u bytes sent with a credit of %u", m->data.len, op->credit[FL_STREAM_IN]);
  } else {
    op->credit[FL_STREAM_IN] -= m->data.len;
    if (op->kind == OP_PUT) put_data(op, &m->data);
    else exec_input_data(op, &m->data);
    return;
  }
  if (op->kind == OP_EXEC) exec_signal_group(op, 9);
  op_free(op);
}

void op_end(const struct msg *m) {
  struct op *op = op_find(m->id);
  if (op == NULL || m->stream != FL_STREAM_IN) return;
  if (op->kind == OP_PUT) {
    put_finish(op);
  } else if (op->kind == OP_EXEC || op->kind == OP_CALL) {
    op->in_ended = true;
    exec_input(op);
  }
}

void op_credit(const struct msg *m) {
  struct op *op = op_find(m->id);
  if (op == NULL || m->stream == FL_STREAM_IN) return;
  uint32_t had = op->credit[m->stream];
  if (m->credit > FL_WINDOW_TO_HOST || had > FL_WINDOW_TO_HOST - m->credit) {
    tx_error(m->id, FL_ERR_FLOW, 0, "A credit of %u on top of %u exceeds the window", m->credit, had);
    if (op->kind == OP_EXEC) exec_signal_group(op, 9);
    op_free(op);
    return;
  }
  op->credit[m->stream] = had + m->credit;
  if (op->kind == OP_EXEC || op->kind == OP_CALL) op_poll(op, m->stream, true);
}

void op_cancel(const struct msg *m) {
  struct op *op = op_find(m->id);
  if (op == NULL) return;
  if (op->kind != OP_EXEC && op->kind != OP_CALL) {
    op_free(op);
    tx_plain(FL_MSG_OK, m->id);
    return;
  }
  if (m->stream == FL_STREAM_IN || op->fd[m->stream] < 0) return;
  close_fd(op, m->stream);
  tx_stream(FL_MSG_END, op->id, m->stream);
  ops_finish(op);
}

void ops_finish(struct op *op) {
  if (op->fd[FL_STREAM_OUT] >= 0 || op->fd[FL_STREAM_ERR] >= 0) return;
  if (op->kind == OP_EXEC ? op->exited : op->fd[FL_STREAM_IN] < 0) op_free(op);
}

bool ops_drained(void) {
  for (unsigned i = 0; ops_live > 0 && i < OPS_SIZE; i++)
    for (uint32_t s = FL_STREAM_OUT; s <= FL_STREAM_ERR; s++) {
      struct pollfd p = {.fd = ops[i].fd[s], .events = POLLIN};
      if ((ops[i].kind != OP_EXEC && ops[i].kind != OP_CALL) || p.fd < 0 || ops[i].credit[s] == 0) continue;
      if (poll(&p, 1, 0) > 0) return false;
    }
  return true;
}

static void discard(int fd) {
  char bytes[4096];
  while (fd >= 0 && read(fd, bytes, sizeof bytes) > 0) continue;
}

/* In a fork: the programs go on, and a host that knows of them gives them credit. What they had written before is
 * the other VM's; what they were sent is theirs as well. */
void ops_inherit(void) {
  for (unsigned i = 0; i < OPS_SIZE; i++) {
    struct op *op = &ops[i];
    if (op->kind == OP_FREE) continue;
    if (op->kind != OP_EXEC && op->kind != OP_CALL) {
      op_free(op);
      continue;
    }
    for (uint32_t s = FL_STREAM_OUT; s <= FL_STREAM_ERR; s++) {
      if (op->kind == OP_EXEC) discard(op->fd[s]);
      op_poll(op, s, false);
      op->credit[s] = 0;
    }
    op->credit[FL_STREAM_IN] = FL_WINDOW_TO_GUEST - op->in_len;
    op->in_owed = 0;
  }
}

bool ops_pump(void) {
  static unsigned turn; /* so that one long transfer does not starve the others */
  bool more = false;
  if (ops_live == 0) return false;
  for (unsigned i = 0; i < OPS_SIZE && tx_open_for_data(); i++) {
    struct op *op = &ops[(turn + i) % OPS_SIZE];
    if ((op->kind != OP_GET && op->kind != OP_LIST) || op->credit[FL_STREAM_OUT] == 0) continue;
    if (!(op->kind == OP_GET ? get_produce(op) : list_produce(op))) continue;
    turn = (unsigned)(op - ops) + 1;
    more = true;
  }
  return more;
}

void ops_reset(void) {
  for (unsigned i = 0; i < OPS_SIZE; i++) {
    if (ops[i].kind == OP_FREE) continue;
    if (ops[i].kind == OP_EXEC) exec_signal_group(&ops[i], 9);
    op_free(&ops[i]);
  }
}
