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
  struct view hostname, cwd, path, data, vm_id, machine_id, boot_id, entropy, ssh_private, ssh_public;
  struct mp_reader argv, env; /* arrays of strings, already checked */
  uint32_t argv_count, env_count;
  uint32_t index, mode, stream, credit, target, signal, grace_ms, uid, gid, hook_timeout_ms;
  uint64_t realtime_ns;
  bool has_hostname, has_index, has_cwd, has_path, has_data, has_argv, has_mode, has_stream, has_credit;
  bool has_target, has_signal, has_grace_ms, has_uid, has_gid;
  bool has_vm_id, has_machine_id, has_boot_id, has_realtime_ns, has_entropy, has_hook_timeout_ms, has_ssh_key;
  bool wants_stdin, wants_hook, is_live;
};

enum msg_result { MSG_OK, MSG_BAD, MSG_UNKNOWN };

/* Decodes and checks a payload. MSG_BAD names the culprit in `why`; type and id are set as far as
 * they could be read. */
enum msg_result msg_parse(const uint8_t *payload, uint32_t len, struct msg *m, const char **why);

#endif
