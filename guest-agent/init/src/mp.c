#include "mp.h"

#include <string.h>

enum mp_kind { MP_NIL, MP_BOOL, MP_UINT, MP_NEGATIVE, MP_FLOAT, MP_STR, MP_BIN, MP_ARRAY, MP_MAP, MP_EXT };

struct mp_head {
  enum mp_kind kind;
  uint64_t value; /* the number, the byte length, or the count of items */
};

static uint64_t be(const uint8_t *p, unsigned width) {
  uint64_t v = 0;
  for (unsigned i = 0; i < width; i++) v = v << 8 | p[i];
  return v;
}

/* Reads a head whose value stands in `width` big-endian bytes behind the tag. */
static bool wide(struct mp_reader *r, enum mp_kind kind, unsigned width, struct mp_head *h) {
  if ((size_t)(r->end - r->p) < 1u + width) return false;
  h->kind = kind;
  h->value = be(r->p + 1, width);
  r->p += 1 + width;
  return true;
}

static bool head(struct mp_reader *r, struct mp_head *h) {
  if (r->p >= r->end) return false;
  uint8_t tag = *r->p;
  h->value = 0;
  if (tag <= 0x7f) { h->kind = MP_UINT; h->value = tag; r->p++; return true; }
  if (tag <= 0x8f) { h->kind = MP_MAP; h->value = tag & 0x0f; r->p++; return true; }
  if (tag <= 0x9f) { h->kind = MP_ARRAY; h->value = tag & 0x0f; r->p++; return true; }
  if (tag <= 0xbf) { h->kind = MP_STR; h->value = tag & 0x1f; r->p++; return true; }
  if (tag >= 0xe0) { h->kind = MP_NEGATIVE; r->p++; return true; }
  switch (tag) {
    case 0xc0: h->kind = MP_NIL; r->p++; return true;
    case 0xc2: case 0xc3: h->kind = MP_BOOL; h->value = tag & 1; r->p++; return true;
    case 0xc4: return wide(r, MP_BIN, 1, h);
    case 0xc5: return wide(r, MP_BIN, 2, h);
    case 0xc6: return wide(r, MP_BIN, 4, h);
    case 0xc7: case 0xc8: case 0xc9: {
      if (!wide(r, MP_EXT, 1u << (tag - 0xc7), h)) return false;
      h->value += 1; /* the ext type byte */
      return true;
    }
    case 0xca: return wide(r, MP_FLOAT, 4, h);
    case 0xcb: return wide(r, MP_FLOAT, 8, h);
    case 0xcc: return wide(r, MP_UINT, 1, h);
    case 0xcd: return wide(r, MP_UINT, 2, h);
    case 0xce: return wide(r, MP_UINT, 4, h);
    case 0xcf: return wide(r, MP_UINT, 8, h);
    case 0xd0: case 0xd1: case 0xd2: case 0xd3: {
      unsigned width = 1u << (tag - 0xd0);
      if (!wide(r, MP_UINT, width, h)) return false;
      if (h->value >> (8 * width - 1)) h->kind = MP_NEGATIVE;
      return true;
    }
    case 0xd4: case 0xd5: case 0xd6: case 0xd7: case 0xd8:
      h->kind = MP_EXT;
      h->value = 1 + (1u << (tag - 0xd4));
      r->p++;
      return true;
    case 0xd9: return wide(r, MP_STR, 1, h);
    case 0xda: return wide(r, MP_STR, 2, h);
    case 0xdb: return wide(r, MP_STR, 4, h);
    case 0xdc: return wide(r, MP_ARRAY, 2, h);
    case 0xdd: return wide(r, MP_ARRAY, 4, h);
    case 0xde: return wide(r, MP_MAP, 2, h);
    case 0xdf: return wide(r, MP_MAP, 4, h);
    default: return false; /* 0xc1 is never used */
  }
}

static size_t left(const struct mp_reader *r) { return (size_t)(r->end - r->p); }

static bool expect(struct mp_reader *r, enum mp_kind kind, struct mp_head *h) {
  struct mp_reader at = *r;
  if (!head(&at, h) || h->kind != kind) return false;
  *r = at;
  return true;
}

bool mp_read_uint(struct mp_reader *r, uint64_t *out) {
  struct mp_head h;
  if (!expect(r, MP_UINT, &h)) return false;
  *out = h.value;
  return true;
}

bool mp_read_bool(struct mp_reader *r, bool *out) {
  struct mp_head h;
  if (!expect(r, MP_BOOL, &h)) return false;
  *out = h.value != 0;
  return true;
}

static bool bytes(struct mp_reader *r, enum mp_kind kind, struct view *out) {
  struct mp_reader at = *r;
  struct mp_head h;
  if (!expect(&at, kind, &h) || h.value > left(&at)) return false;
  out->p = (const char *)at.p;
  out->len = (uint32_t)h.value;
  at.p += h.value;
  *r = at;
  return true;
}

bool mp_read_str(struct mp_reader *r, struct view *out) { return bytes(r, MP_STR, out); }
bool mp_read_bin(struct mp_reader *r, struct view *out) { return bytes(r, MP_BIN, out); }

static bool counted(struct mp_reader *r, enum mp_kind kind, unsigned each, uint32_t *count) {
  struct mp_reader at = *r;
  struct mp_head h;
  /* An item takes at least one byte: a count beyond what is left is a lie, refused at once. */
  if (!expect(&at, kind, &h) || h.value * each > left(&at)) return false;
  *count = (uint32_t)h.value;
  *r = at;
  return true;
}

bool mp_read_array(struct mp_reader *r, uint32_t *count) { return counted(r, MP_ARRAY, 1, count); }
bool mp_read_map(struct mp_reader *r, uint32_t *pairs) { return counted(r, MP_MAP, 2, pairs); }

bool mp_skip(struct mp_reader *r) {
  struct mp_reader at = *r;
  uint64_t pending = 1;
  while (pending > 0) {
    struct mp_head h;
    if (pending > left(&at) || !head(&at, &h)) return false;
    pending--;
    switch (h.kind) {
      case MP_STR: case MP_BIN: case MP_EXT:
        if (h.value > left(&at)) return false;
        at.p += h.value;
        break;
      case MP_ARRAY: pending += h.value; break;
      case MP_MAP: pending += 2 * h.value; break;
      default: break;
    }
  }
  *r = at;
  return true;
}

static uint8_t *room(struct mp_writer *w, size_t n) {
  if (w->overflow || (size_t)(w->end - w->p) < n) {
    w->overflow = true;
    return NULL;
  }
  uint8_t *at = w->p;
  w->p += n;
  return at;
}

static void put(struct mp_writer *w, uint8_t tag, uint64_t value, unsigned width) {
  uint8_t *at = room(w, 1 + width);
  if (at == NULL) return;
  *at = tag;
  for (unsigned i = 0; i < width; i++) at[1 + i] = (uint8_t)(value >> (8 * (width - 1 - i)));
}

void mp_uint(struct mp_writer *w, uint64_t v) {
  if (v <= 0x7f) put(w, (uint8_t)v, 0, 0);
  else if (v <= 0xff) put(w, 0xcc, v, 1);
  else if (v <= 0xffff) put(w, 0xcd, v, 2);
  else if (v <= 0xffffffff) put(w, 0xce, v, 4);
  else put(w, 0xcf, v, 8);
}

void mp_bool(struct mp_writer *w, bool value) { put(w, value ? 0xc3 : 0xc2, 0, 0); }

void mp_str(struct mp_writer *w, const char *s, size_t len) {
  if (len <= 31) put(w, (uint8_t)(0xa0 | len), 0, 0);
  else if (len <= 0xff) put(w, 0xd9, len, 1);
  else put(w, 0xda, len & 0xffff, 2);
  if (len > 0xffff) w->overflow = true;
  uint8_t *at = room(w, len);
  if (at != NULL) memcpy(at, s, len);
}

void mp_cstr(struct mp_writer *w, const char *s) { mp_str(w, s, strlen(s)); }

void mp_array(struct mp_writer *w, uint32_t count) {
  if (count <= 15) put(w, (uint8_t)(0x90 | count), 0, 0);
  else put(w, 0xdd, count, 4);
}

void mp_map(struct mp_writer *w, uint32_t pairs) {
  if (pairs <= 15) put(w, (uint8_t)(0x80 | pairs), 0, 0);
  else put(w, 0xdf, pairs, 4);
}

void mp_bin_head(struct mp_writer *w, uint32_t len) { put(w, 0xc6, len, 4); }

void mp_raw(struct mp_writer *w, const uint8_t *p, size_t len) {
  uint8_t *at = room(w, len);
  if (at != NULL) memcpy(at, p, len);
}
