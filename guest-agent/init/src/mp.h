/* MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md), the part that frames use:
 * nil, booleans, integers, strings, binary, arrays and maps. No allocation, no recursion. */
#ifndef FLURRY_MP_H
#define FLURRY_MP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct view {
  const char *p;
  uint32_t len;
};

struct mp_reader {
  const uint8_t *p;
  const uint8_t *end;
};

/* Each reads one value of its kind, or returns false and leaves the reader where it was. */
bool mp_read_uint(struct mp_reader *r, uint64_t *out);
bool mp_read_bool(struct mp_reader *r, bool *out);
bool mp_read_str(struct mp_reader *r, struct view *out);
bool mp_read_bin(struct mp_reader *r, struct view *out);
bool mp_read_array(struct mp_reader *r, uint32_t *count);
bool mp_read_map(struct mp_reader *r, uint32_t *pairs);
/* Steps over one value of any kind, however deep, in time linear in its size. */
bool mp_skip(struct mp_reader *r);

struct mp_writer {
  uint8_t *p;
  uint8_t *end;
  bool overflow;
};

void mp_uint(struct mp_writer *w, uint64_t value);
void mp_bool(struct mp_writer *w, bool value);
void mp_str(struct mp_writer *w, const char *s, size_t len);
void mp_cstr(struct mp_writer *w, const char *s);
void mp_array(struct mp_writer *w, uint32_t count);
void mp_map(struct mp_writer *w, uint32_t pairs);
/* Writes only the head (always five bytes); the caller puts the bytes behind it. */
void mp_bin_head(struct mp_writer *w, uint32_t len);
void mp_raw(struct mp_writer *w, const uint8_t *p, size_t len);

#endif
