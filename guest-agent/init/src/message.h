/* Splits the host's byte stream into frames and decodes their messages. Pure: no descriptors, no
 * allocation, so that the fuzzer drives the very code that PID 1 runs. */
#ifndef FLURRY_MESSAGE_H
#define FLURRY_MESSAGE_H

#include "mp.h"
#include "protocol.h"

struct rx {
  size_t start; /* first byte not yet taken */
  size_t fill;  /* end of what was read */
  size_t scanned; /* no marker begins before here, but for its last bytes */
  bool lost;    /* framing is gone: everything up to the next marker is dropped */
  uint8_t buf[4 + FL_FRAME_MAX];
};

enum rx_event { RX_NEED_MORE, RX_FRAME, RX_MARKER, RX_TOO_LARGE };

void rx_reset(struct rx *rx);
/* Where to read into and how much; moves what is left to the front of the buffer first. */
uint8_t *rx_room(struct rx *rx, size_t *room);
/* Takes the next frame or marker; a marker beats whatever stands before it, also half a frame of a
 * host that vanished so quickly that its hang-up was not seen. The payload stays valid until rx_room or rx_reset. */
enum rx_event rx_next(struct rx *rx, const uint8_t **payload, uint32_t *len);

/* One decoded message; every view points into the frame. */
struct msg {
  uint32_t type;
  uint32_t id;
  struct view hostname, cwd, path, data;
  struct mp_reader argv, env; /* arrays of strings, already checked */
  uint32_t argv_count, env_count;
  uint32_t index, mode, stream, credit, target, signal, grace_ms, uid, gid;
  bool has_hostname, has_index, has_cwd, has_path, has_data, has_argv, has_mode, has_stream, has_credit;
  bool has_target, has_signal, has_grace_ms, has_uid, has_gid;
  bool wants_stdin;
};

enum msg_result { MSG_OK, MSG_BAD, MSG_UNKNOWN };

/* Decodes and checks a payload. MSG_BAD names the culprit in `why`; type and id are set as far as
 * they could be read. */
enum msg_result msg_parse(const uint8_t *payload, uint32_t len, struct msg *m, const char **why);

#endif
