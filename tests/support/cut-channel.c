/*
 * Cuts a socket of another process, as if the kernel had lost it: `cut-channel PID PATH` shuts down the
 * socket of PID whose peer is bound to PATH. Both ends see the end of the connection; both live on.
 */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_pidfd_getfd
#define SYS_pidfd_getfd 438
#endif

static int is_peer(int fd, const char *path) {
  struct sockaddr_un address;
  socklen_t length = sizeof address;
  memset(&address, 0, sizeof address);
  if (getpeername(fd, (struct sockaddr *)&address, &length) != 0) return 0;
  return address.sun_family == AF_UNIX && strcmp(address.sun_path, path) == 0;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  char fds[64];
  snprintf(fds, sizeof fds, "/proc/%s/fd", argv[1]);
  int process = (int)syscall(SYS_pidfd_open, atoi(argv[1]), 0);
  DIR *directory = opendir(fds);
  if (process < 0 || directory == NULL) {
    perror("process");
    return 1;
  }
  for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    int fd = (int)syscall(SYS_pidfd_getfd, process, atoi(entry->d_name), 0);
    if (fd < 0) continue;
    if (is_peer(fd, argv[2])) return shutdown(fd, SHUT_RDWR) == 0 ? 0 : 1;
    close(fd);
  }
  fprintf(stderr, "no socket of %s is connected to %s\n", argv[1], argv[2]);
  return 1;
}
