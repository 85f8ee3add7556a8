#include "agent.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* The channel is watched edge-triggered. A virtio-serial port reports a hang-up for as long as the
 * host is away, which would spin a level-triggered loop; its driver wakes the wait queue whenever
 * the host comes, goes, sends or makes room, so the edges miss nothing and no timer is needed. */
static struct rx rx;
static struct {
  enum channel_kind kind;
  int fd;       /* -1 while nobody is connected to the listening socket */
  int listener;
  bool readable, gone, blocked;
  /* A new host spoke, but the port was not yet seen connected. Its bytes can overtake the driver's
   * news that it came: a hang-up seen then is the last host's, and must not cost this one its answer. */
  bool unconfirmed;
} ch = {.fd = -1, .listener = -1};

static void attach(int fd) {
  ch.fd = fd;
  ch.readable = true;
  ch.gone = ch.blocked = false;
  rx_reset(&rx);
  watch(fd, EPOLLIN | EPOLLET, TAG_CHANNEL, false);
}

void channel_use(enum channel_kind kind, int fd) {
  ch.kind = kind;
  agent.greeting_owed = true;
  if (kind == CHANNEL_LISTEN) {
    ch.listener = fd;
    watch(fd, EPOLLIN, TAG_CHANNEL, false);
    return;
  }
  attach(fd);
  identity_hello(0);
  channel_flush();
}

static void accept_host(void) {
  int fd = accept4(ch.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return;
  unwatch(ch.listener, false); /* one host at a time: the next one waits in the backlog */
  attach(fd);
  identity_hello(0);
  channel_flush();
}

/* The host went away: what it started dies with it, a half frame is dropped, in both directions. */
static void hang_up(void) {
  ch.readable = false;
  if (ch.gone) return;
  ch.gone = true;
  rx_reset(&rx);
  session_reset();
  if (ch.kind == CHANNEL_PORT) return; /* kept open; the driver tells when a host is back */
  if (ch.kind == CHANNEL_FD) exit(0);
  close(ch.fd);
  ch.fd = -1;
  watch(ch.listener, EPOLLIN, TAG_CHANNEL, false);
}

void channel_event(uint32_t events) {
  (void)events; /* what it was shows in the next read and write */
  if (ch.fd < 0) {
    accept_host();
    return;
  }
  ch.readable = true;
  if (ch.blocked) channel_flush();
}

bool channel_blocked(void) { return ch.blocked; }

static void set_blocked(bool on) {
  if (ch.blocked == on || ch.fd < 0) return;
  ch.blocked = on;
  rewatch(ch.fd, on ? EPOLLIN | EPOLLOUT | EPOLLET : EPOLLIN | EPOLLET, TAG_CHANNEL);
}

void channel_flush(void) {
  const uint8_t *p;
  size_t n;
  while (ch.fd >= 0 && (n = tx_pending(&p)) > 0) {
    ssize_t done = write(ch.fd, p, n);
    if (done > 0) {
      tx_sent((size_t)done);
      ch.unconfirmed = false;
      continue;
    }
    if (done < 0 && errno == EINTR) continue;
    if (done < 0 && errno != EAGAIN) {
      hang_up();
      return;
    }
    set_blocked(true);
    return;
  }
  if (ch.blocked) set_blocked(false);
}

/* Handles every whole frame in the buffer that there is room to answer. */
static bool dispatch(void) {
  const uint8_t *payload;
  uint32_t len;
  for (;;) {
    if (agent.stopping) return false;
    if (!tx_open_for_requests()) return true;
    switch (rx_next(&rx, &payload, &len)) {
      case RX_NEED_MORE:
        return false;
      case RX_FRAME:
        session_dispatch(payload, len);
        break;
      case RX_MARKER: /* a new host: nothing of an earlier one is left over */
        session_reset();
        ch.unconfirmed = ch.kind == CHANNEL_PORT;
        break;
      case RX_TOO_LARGE:
        session_reset();
        tx_error(0, FL_ERR_FRAME_TOO_LARGE, 0, "A frame is longer than %d bytes: dropping input until the next marker",
                 FL_FRAME_MAX);
        break;
    }
  }
}

bool channel_pump(void) {
  if (ch.fd < 0) return false;
  bool full = dispatch(); /* what an earlier pass had no room to answer */
  channel_flush();
  if (full || !ch.readable || ch.fd < 0) return full && !ch.blocked;
  size_t room;
  uint8_t *at = rx_room(&rx, &room);
  ssize_t n = read(ch.fd, at, room);
  if (n < 0 && errno == EINTR) return true;
  if (n < 0 && errno == EAGAIN) {
    ch.readable = ch.gone = ch.unconfirmed = false;
    return false;
  }
  if (n == 0 && ch.unconfirmed) {
    ch.readable = false; /* the driver's wake-up when the host is there brings us back */
    return false;
  }
  if (n <= 0) {
    hang_up();
    return false;
  }
  ch.gone = false;
  rx.fill += (size_t)n;
  dispatch();
  channel_flush();
  return !ch.blocked || tx_open_for_requests();
}
