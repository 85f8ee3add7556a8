/* libFuzzer target: the first byte says how the rest is cut into reads, the rest is the host's byte
 * stream, through the same functions as in the agent. */
#include <stdlib.h>
#include <string.h>

#include "message.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile unsigned touched;

static void touch(const struct view *v) {
  for (uint32_t i = 0; i < v->len; i++) touched += (unsigned char)v->p[i];
}

/* Reads every byte that a decoded message points at. */
static void use(const struct msg *m) {
  struct mp_reader argv = m->argv, env = m->env;
  struct view v;
  if (m->has_hostname) touch(&m->hostname);
  if (m->has_cwd) touch(&m->cwd);
  if (m->has_path) touch(&m->path);
  if (m->has_data) touch(&m->data);
  if (m->has_vm_id) touch(&m->vm_id);
  if (m->has_machine_id) touch(&m->machine_id);
  if (m->has_boot_id) touch(&m->boot_id);
  if (m->has_entropy) touch(&m->entropy);
  if (m->has_ssh_key) {
    touch(&m->ssh_private);
    touch(&m->ssh_public);
  }
  for (uint32_t i = 0; i < m->argv_count; i++) {
    if (!mp_read_str(&argv, &v)) abort();
    touch(&v);
  }
  for (uint32_t i = 0; i < m->env_count; i++) {
    if (!mp_read_str(&env, &v)) abort();
    touch(&v);
  }
}

static void parse(const uint8_t *payload, uint32_t len) {
  struct msg m;
  const char *why = NULL;
  /* A copy of exactly this size lets the sanitizer see a read one byte behind the frame. */
  uint8_t *copy = malloc(len > 0 ? len : 1);
  memcpy(copy, payload, len);
  switch (msg_parse(copy, len, &m, &why)) {
    case MSG_OK: use(&m); break;
    case MSG_BAD: touched += (unsigned)strlen(why); break;
    case MSG_UNKNOWN: break;
  }
  free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static struct rx rx;
  if (size < 1) return 0;
  size_t cut = data[0] + 1u;
  rx_reset(&rx);
  parse(data + 1, (uint32_t)(size - 1)); /* also as one payload: frames by luck are rare */
  for (size_t at = 1; at < size;) {
    size_t room;
    uint8_t *to = rx_room(&rx, &room);
    size_t n = size - at < cut ? size - at : cut;
    if (room == 0) abort(); /* a full buffer without a frame in it would hang the agent */
    if (n > room) n = room;
    memcpy(to, data + at, n);
    rx.fill += n;
    at += n;
    const uint8_t *payload;
    uint32_t len;
    for (bool more = true; more;) {
      switch (rx_next(&rx, &payload, &len)) {
        case RX_NEED_MORE: more = false; break;
        case RX_FRAME: parse(payload, len); break;
        case RX_MARKER: case RX_TOO_LARGE: break;
      }
    }
  }
  return 0;
}
