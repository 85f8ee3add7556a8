#include "agent.h"

/* A session lasts from one marker (or hang-up) to the next. */
void session_reset(void) {
  if (ops_live > 0 && identity_is_held()) ops_inherit();
  else if (ops_live > 0) ops_reset();
  identity_forget();
  tx_reset();
  agent.greeting_owed = true;
}

static void quiesce(const struct msg *m) {
  static const char *const names[] = {[OP_EXEC] = "exec", [OP_PUT] = "put", [OP_GET] = "get", [OP_LIST] = "list"};
  for (unsigned i = 0; ops_live > 0 && i < OPS_SIZE; i++) {
    if (m->is_live || ops[i].kind == OP_FREE || ops[i].kind == OP_CALL) continue;
    tx_error(m->id, FL_ERR_BUSY, 0, "Cannot quiesce: %u operations are running, among them %s with id %u", ops_live,
             names[ops[i].kind], ops[i].id);
    return;
  }
  identity_quiesce(m);
}

/* Before a fork is released, its processes stand still: nothing is done that could be theirs. A host may look at
 * files for itself, but not while its last word is awaited that all are at rest. */
static bool is_for_fork(uint32_t type) {
  bool is_for_look = type == FL_MSG_GET || type == FL_MSG_CREDIT || type == FL_MSG_CANCEL;
  if (is_for_look) return !identity_is_preparing();
  return type == FL_MSG_PING || type == FL_MSG_HELLO || type == FL_MSG_IDENTIFY || type == FL_MSG_QUIESCE ||
         type == FL_MSG_RELEASE || type == FL_MSG_SHUTDOWN;
}

void session_dispatch(const uint8_t *payload, uint32_t len) {
  struct msg m;
  const char *why;
  switch (msg_parse(payload, len, &m, &why)) {
    case MSG_BAD:
      tx_error(m.id, FL_ERR_BAD_MESSAGE, 0, "Cannot read a message of type %u: %s", m.type, why);
      return;
    case MSG_UNKNOWN:
      tx_error(m.id, FL_ERR_UNKNOWN_TYPE, 0, "The message type %u is unknown", m.type);
      return;
    case MSG_OK:
      break;
  }
  if (identity_is_quiet() && !is_for_fork(m.type)) {
    tx_error(m.id, FL_ERR_STATE, 0, "The VM is at rest for a fork: only an identity and its release are taken");
    return;
  }
  switch (m.type) {
    case FL_MSG_PING: tx_plain(FL_MSG_PONG, m.id); return;
    case FL_MSG_IDENTIFY: identity_identify(&m); return;
    case FL_MSG_RELEASE: identity_release(&m); return;
    case FL_MSG_HELLO: identity_hello(m.id); return;
    case FL_MSG_DATA: op_data(&m); return;
    case FL_MSG_CREDIT: op_credit(&m); return;
    case FL_MSG_END: op_end(&m); return;
    case FL_MSG_CANCEL: op_cancel(&m); return;
    case FL_MSG_EXEC: exec_start(&m); return;
    case FL_MSG_KILL: exec_kill(&m); return;
    case FL_MSG_PUT: put_start(&m); return;
    case FL_MSG_GET: get_start(&m); return;
    case FL_MSG_LIST: list_start(&m); return;
    case FL_MSG_QUIESCE: quiesce(&m); return;
    default: /* FL_MSG_SHUTDOWN: msg_parse lets nothing else through */
      tx_plain(FL_MSG_STOPPING, m.id);
      agent.stopping = true;
      agent.stop_grace_ms = m.has_grace_ms ? m.grace_ms : 1000;
      return;
  }
}
