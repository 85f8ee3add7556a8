#include "agent.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Data goes in only while little is queued, so an answer never waits behind more than two data
 * frames; requests are taken only while their answers surely fit. What happens unasked (exits, ends,
 * credits) is at most a few dozen bytes for each live operation and fits above both marks. */
#define DATA_MARK 32768u
#define REQUEST_MARK 98304u
#define TX_SIZE 131072u
#define DATA_HEAD 32u

static uint8_t buf[TX_SIZE];
static size_t start, fill, frame;
static struct mp_writer writer;

static size_t queued(void) { return fill - start; }

bool tx_open_for_data(void) { return queued() < DATA_MARK; }
bool tx_open_for_requests(void) { return queued() < REQUEST_MARK; }

size_t tx_pending(const uint8_t **p) {
  *p = buf + start;
  return fill - start;
}

void tx_sent(size_t n) {
  start += n;
  if (start == fill) start = fill = 0;
}

void tx_reset(void) { start = fill = 0; }

/* Makes the free space contiguous; only a host that reads slowly makes this move bytes. */
static void compact(size_t need) {
  if (start == 0 || sizeof buf - fill >= need) return;
  memmove(buf, buf + start, fill - start);
  fill -= start;
  start = 0;
}

static void greet(void) {
  if (!agent.greeting_owed) return;
  agent.greeting_owed = false;
  memcpy(buf + fill, FL_MARKER, FL_MARKER_SIZE);
  fill += FL_MARKER_SIZE;
}

struct mp_writer *tx_begin(uint32_t type, uint32_t id, uint32_t pairs) {
  compact(32768); /* an identity with the most hooks that there can be */
  greet();
  frame = fill;
  writer.p = buf + fill + 4;
  writer.end = buf + sizeof buf;
  writer.overflow = sizeof buf - fill < 4;
  mp_array(&writer, pairs > 0 ? 3 : 2);
  mp_uint(&writer, type);
  mp_uint(&writer, id);
  if (pairs > 0) mp_map(&writer, pairs);
  return &writer;
}

static void close_frame(size_t end) {
  size_t len = end - frame - 4;
  buf[frame] = (uint8_t)(len >> 24);
  buf[frame + 1] = (uint8_t)(len >> 16);
  buf[frame + 2] = (uint8_t)(len >> 8);
  buf[frame + 3] = (uint8_t)len;
  fill = end;
}

void tx_end(void) {
  if (writer.overflow) return; /* the marks make this impossible; a torn frame must never leave */
  close_frame((size_t)(writer.p - buf));
}

void tx_plain(uint32_t type, uint32_t id) {
  tx_begin(type, id, 0);
  tx_end();
}

void tx_stream(uint32_t type, uint32_t id, uint32_t stream) {
  struct mp_writer *w = tx_begin(type, id, 1);
  mp_cstr(w, "s");
  mp_uint(w, stream);
  tx_end();
}

void tx_credit(uint32_t id, uint32_t stream, uint32_t bytes) {
  struct mp_writer *w = tx_begin(FL_MSG_CREDIT, id, 2);
  mp_cstr(w, "s");
  mp_uint(w, stream);
  mp_cstr(w, "n");
  mp_uint(w, bytes);
  tx_end();
}

void tx_error(uint32_t id, const char *code, int err, const char *format, ...) {
  char text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  struct mp_writer *w = tx_begin(FL_MSG_ERROR, id, err != 0 ? 3 : 2);
  mp_cstr(w, "code");
  mp_cstr(w, code);
  if (err != 0) {
    mp_cstr(w, "errno");
    mp_cstr(w, errno_name(err));
  }
  mp_cstr(w, "message");
  mp_cstr(w, text);
  tx_end();
}

uint8_t *tx_data_room(uint32_t *room) {
  if (!tx_open_for_data()) return NULL;
  compact(DATA_HEAD + FL_MARKER_SIZE + FL_CHUNK_MAX);
  greet();
  if (*room > FL_CHUNK_MAX) *room = FL_CHUNK_MAX;
  return buf + fill + DATA_HEAD;
}

void tx_data(uint32_t id, uint32_t stream, uint32_t len) {
  size_t payload = fill + DATA_HEAD;
  struct mp_writer *w = tx_begin(FL_MSG_DATA, id, 2);
  mp_cstr(w, "s");
  mp_uint(w, stream);
  mp_cstr(w, "d");
  mp_bin_head(w, len);
  /* The head's length depends on the id's; the bytes stand behind the longest head. */
  memmove(w->p, buf + payload, len);
  close_frame((size_t)(w->p - buf) + len);
}
