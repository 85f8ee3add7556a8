#include "agent.h"

#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* From linux/netlink.h, which a musl toolchain does not bring along. */
#define NETLINK_KOBJECT_UEVENT 15
struct netlink_address {
  sa_family_t family;
  unsigned short pad;
  uint32_t pid;
  uint32_t groups;
};

static int sock = -1;

void uevent_open(void) {
  struct netlink_address a = {.family = AF_NETLINK, .groups = 1};
  sock = socket(AF_NETLINK, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
  if (sock >= 0) bind(sock, (struct sockaddr *)&a, sizeof a);
}

void uevent_close(void) {
  if (sock >= 0) close(sock);
  sock = -1;
}

bool uevent_wait(uint64_t deadline_ns) {
  char buf[4096];
  uint64_t now = now_ns();
  if (now >= deadline_ns) return false;
  struct pollfd p = {.fd = sock, .events = POLLIN};
  if (poll(&p, 1, (int)((deadline_ns - now) / 1000000) + 1) <= 0) return false;
  /* What was announced does not matter: the caller looks for what it needs again. */
  while (recv(sock, buf, sizeof buf, 0) > 0) continue;
  return true;
}
