#include "message.h"

#include <string.h>

#define HEX "0123456789abcdef"
#define NAME "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-"

void rx_reset(struct rx *rx) { rx->start = rx->fill = rx->scanned = 0; rx->lost = false; }

uint8_t *rx_room(struct rx *rx, size_t *room) {
  size_t base = rx->start < rx->scanned ? rx->start : rx->scanned;
  if (base > 0) {
    memmove(rx->buf, rx->buf + base, rx->fill - base);
    rx->fill -= base;
    rx->scanned -= base;
    rx->start -= base;
  }
  *room = sizeof rx->buf - rx->fill;
  return rx->buf + rx->fill;
}

/* Looks through what is new, once. `scanned` ends where a marker may have begun. */
static bool find_marker(struct rx *rx) {
  size_t at = rx->scanned;
  for (;;) {
    const uint8_t *p = at < rx->fill ? memchr(rx->buf + at, 0xff, rx->fill - at) : NULL;
    if (p == NULL) {
      rx->scanned = rx->fill;
      return false;
    }
    at = (size_t)(p - rx->buf);
    size_t have = rx->fill - at, n = have < FL_MARKER_SIZE ? have : FL_MARKER_SIZE;
    if (memcmp(p, FL_MARKER, n) == 0) {
      rx->scanned = at;
      if (n < FL_MARKER_SIZE) return false;
      rx->start = rx->scanned = at + FL_MARKER_SIZE;
      rx->lost = false;
      return true;
    }
    at++;
  }
}

enum rx_event rx_next(struct rx *rx, const uint8_t **payload, uint32_t *len) {
  if (rx->scanned < rx->fill && find_marker(rx)) return RX_MARKER;
  if (rx->lost) rx->start = rx->scanned;
  size_t have = rx->fill - rx->start;
  if (have == 0 && rx->scanned == rx->fill) {
    rx->start = rx->fill = rx->scanned = 0; /* the next read lands on the same page again */
    return RX_NEED_MORE;
  }
  /* What may be a marker is not taken for a length; the next byte tells. */
  bool maybe_marker = rx->scanned < rx->fill && rx->scanned <= rx->start;
  if (rx->lost || have < 4 || maybe_marker) return RX_NEED_MORE;
  const uint8_t *p = rx->buf + rx->start;
  uint32_t size = (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
  if (size > FL_FRAME_MAX) {
    rx->lost = true;
    return RX_TOO_LARGE;
  }
  if (have - 4 < size) return RX_NEED_MORE;
  *payload = p + 4;
  *len = size;
  rx->start += 4 + size;
  return RX_FRAME;
}

static bool read_u32(struct mp_reader *r, uint32_t *out) {
  uint64_t v;
  if (!mp_read_uint(r, &v) || v > UINT32_MAX) return false;
  *out = (uint32_t)v;
  return true;
}

/* A string that may go to the kernel: a zero byte inside would silently cut it. */
static bool read_text(struct mp_reader *r, struct view *out) {
  return mp_read_str(r, out) && memchr(out->p, 0, out->len) == NULL;
}

static bool read_path(struct mp_reader *r, struct view *out) {
  return read_text(r, out) && out->len > 0 && out->len < FL_PATH_MAX;
}

static bool read_list(struct mp_reader *r, struct mp_reader *items, uint32_t *count) {
  if (!mp_read_array(r, count) || *count > FL_ARGS_MAX) return false;
  *items = *r;
  for (uint32_t i = 0; i < *count; i++) {
    struct view item;
    if (!read_text(r, &item)) return false;
  }
  return true;
}

static bool is(const struct view *key, const char *name) {
  return strlen(name) == key->len && memcmp(key->p, name, key->len) == 0;
}

/* Text of these characters alone: it becomes part of a line, or of a file that programs read. */
static bool read_word(struct mp_reader *r, struct view *out, const char *allowed) {
  if (!mp_read_str(r, out)) return false;
  for (uint32_t i = 0; i < out->len; i++)
    if (out->p[i] == 0 || strchr(allowed, out->p[i]) == NULL) return false;
  return true;
}

static bool read_ssh_key(struct mp_reader *r, struct msg *m) {
  uint32_t pairs;
  struct view key;
  if (!mp_read_map(r, &pairs)) return false;
  for (uint32_t i = 0; i < pairs; i++) {
    if (!mp_read_str(r, &key)) return false;
    struct view *part = is(&key, "private") ? &m->ssh_private : is(&key, "public") ? &m->ssh_public : NULL;
    if (part == NULL ? !mp_skip(r) : !read_text(r, part) || part->len == 0 || part->len > FL_SSH_KEY_MAX) return false;
  }
  return m->has_ssh_key = m->ssh_private.len > 0 && m->ssh_public.len > 0;
}

static bool read_field(struct mp_reader *r, const struct view *key, struct msg *m) {
  if (is(key, "s")) return m->has_stream = read_u32(r, &m->stream) && m->stream <= FL_STREAM_ERR;
  if (is(key, "d")) return m->has_data = mp_read_bin(r, &m->data);
  if (is(key, "n")) return m->has_credit = read_u32(r, &m->credit);
  if (is(key, "hostname")) return m->has_hostname = read_text(r, &m->hostname) && m->hostname.len - 1 < 64;
  if (is(key, "index")) return m->has_index = read_u32(r, &m->index);
  if (is(key, "vmId")) return m->has_vm_id = read_word(r, &m->vm_id, NAME) && m->vm_id.len - 1 < FL_VM_ID_MAX;
  if (is(key, "machineId")) return m->has_machine_id = read_word(r, &m->machine_id, HEX) && m->machine_id.len == 32;
  if (is(key, "bootId")) return m->has_boot_id = read_word(r, &m->boot_id, HEX "-") && m->boot_id.len == 36;
  if (is(key, "realtimeNs")) return m->has_realtime_ns = mp_read_uint(r, &m->realtime_ns);
  if (is(key, "entropy"))
    return m->has_entropy = mp_read_bin(r, &m->entropy) && m->entropy.len >= FL_ENTROPY_MIN &&
                            m->entropy.len <= FL_ENTROPY_MAX;
  if (is(key, "hookTimeoutMs"))
    return m->has_hook_timeout_ms = read_u32(r, &m->hook_timeout_ms) && m->hook_timeout_ms <= 60000;
  if (is(key, "sshKey")) return read_ssh_key(r, m);
  if (is(key, "live")) return mp_read_bool(r, &m->is_live);
  if (is(key, "hook")) return mp_read_bool(r, &m->wants_hook);
  if (is(key, "argv")) return m->has_argv = read_list(r, &m->argv, &m->argv_count) && m->argv_count > 0;
  if (is(key, "env")) return read_list(r, &m->env, &m->env_count);
  if (is(key, "cwd")) return m->has_cwd = read_path(r, &m->cwd);
  if (is(key, "stdin")) return mp_read_bool(r, &m->wants_stdin);
  if (is(key, "uid")) return m->has_uid = read_u32(r, &m->uid);
  if (is(key, "gid")) return m->has_gid = read_u32(r, &m->gid);
  if (is(key, "path")) return m->has_path = read_path(r, &m->path);
  if (is(key, "mode")) return m->has_mode = read_u32(r, &m->mode) && m->mode <= 07777;
  if (is(key, "target")) return m->has_target = read_u32(r, &m->target);
  if (is(key, "signal")) return m->has_signal = read_u32(r, &m->signal) && m->signal >= 1 && m->signal <= 64;
  if (is(key, "graceMs")) return m->has_grace_ms = read_u32(r, &m->grace_ms) && m->grace_ms <= 60000;
  return mp_skip(r); /* a newer host may say more than we know */
}

static const char *missing_of_identity(const struct msg *m) {
  if (!m->has_hostname) return "hostname";
  if (!m->has_index) return "index";
  if (!m->has_vm_id) return "vmId";
  if (!m->has_machine_id) return "machineId";
  if (!m->has_boot_id) return "bootId";
  if (!m->has_realtime_ns) return "realtimeNs";
  return m->has_entropy ? NULL : "entropy";
}

static const char *missing(const struct msg *m) {
  switch (m->type) {
    case FL_MSG_IDENTIFY: return missing_of_identity(m);
    case FL_MSG_EXEC: return m->has_argv ? NULL : "argv";
    case FL_MSG_KILL: return !m->has_target ? "target" : !m->has_signal ? "signal" : NULL;
    case FL_MSG_PUT: case FL_MSG_GET: case FL_MSG_LIST: return m->has_path ? NULL : "path";
    case FL_MSG_DATA: return !m->has_stream ? "s" : !m->has_data ? "d" : NULL;
    case FL_MSG_END: case FL_MSG_CANCEL: return m->has_stream ? NULL : "s";
    case FL_MSG_CREDIT: return !m->has_stream ? "s" : !m->has_credit ? "n" : NULL;
    default: return NULL;
  }
}

static bool known(uint32_t type) {
  switch (type) {
    case FL_MSG_HELLO: case FL_MSG_PING: case FL_MSG_IDENTIFY: case FL_MSG_QUIESCE: case FL_MSG_SHUTDOWN:
    case FL_MSG_EXEC: case FL_MSG_KILL: case FL_MSG_PUT: case FL_MSG_GET: case FL_MSG_LIST:
    case FL_MSG_DATA: case FL_MSG_END: case FL_MSG_CREDIT: case FL_MSG_CANCEL: case FL_MSG_RELEASE:
      return true;
    default:
      return false;
  }
}

enum msg_result msg_parse(const uint8_t *payload, uint32_t len, struct msg *m, const char **why) {
  static char field[32];
  struct mp_reader r = {payload, payload + len};
  uint32_t parts, pairs = 0;
  memset(m, 0, sizeof *m);
  *why = "an array of type, id and fields is expected";
  if (!mp_read_array(&r, &parts) || parts < 2 || parts > 3) return MSG_BAD;
  if (!read_u32(&r, &m->type) || !read_u32(&r, &m->id)) return MSG_BAD;
  if (!known(m->type)) return MSG_UNKNOWN;
  *why = "the id is 0";
  if (m->id == 0) return MSG_BAD;
  *why = "the fields are not a map";
  if (parts == 3 && !mp_read_map(&r, &pairs)) return MSG_BAD;
  for (uint32_t i = 0; i < pairs; i++) {
    struct view key;
    *why = "a field's name is not a string";
    if (!mp_read_str(&r, &key)) return MSG_BAD;
    if (!read_field(&r, &key, m)) {
      size_t n = key.len < sizeof field - 1 ? key.len : sizeof field - 1;
      memcpy(field, key.p, n);
      field[n] = 0;
      *why = field;
      return MSG_BAD;
    }
  }
  *why = "there are bytes behind the message";
  if (r.p != r.end) return MSG_BAD;
  *why = missing(m);
  return *why == NULL ? MSG_OK : MSG_BAD;
}
