#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>
#include <unistd.h>

#define ROOT_DISK "/dev/vda"
/* Devices are announced within milliseconds; this only bounds a machine that lacks one. */
#define DEVICE_LIMIT_NS 20000000000ull

void boot_fail(const char *what, int err) {
  dprintf(2, "flurry-init: %s: %s (%s)\n", what, errno_name(err), strerror(err));
  tcdrain(2);
  sync();
  reboot(RB_POWER_OFF);
  reboot(RB_AUTOBOOT);
  for (;;) pause();
}

static void must_mount(const char *from, const char *to, const char *type, unsigned long flags, const char *options) {
  char what[256];
  mkdir(to, 0755);
  if (mount(from, to, type, flags, options) == 0) return;
  int err = errno;
  snprintf(what, sizeof what, "Cannot mount %s on %s", type != NULL ? type : from, to);
  boot_fail(what, err);
}

static void open_console(void) {
  int fd = open("/dev/console", O_RDWR | O_NOCTTY);
  if (fd < 0) fd = open("/dev/null", O_RDWR);
  for (int to = 0; fd >= 0 && to < 3; to++)
    if (fd != to) dup2(fd, to);
  if (fd > 2) close(fd);
}

/* Squashfs first; else whatever the kernel can read that lives on a device. */
static void mount_disk(const char *to) {
  char line[64];
  uint64_t deadline = now_ns() + DEVICE_LIMIT_NS;
  while (access(ROOT_DISK, F_OK) != 0)
    if (!uevent_wait(deadline)) boot_fail("Cannot find the root disk " ROOT_DISK, ENODEV);
  mkdir(to, 0755);
  if (mount(ROOT_DISK, to, "squashfs", MS_RDONLY | MS_NODEV, NULL) == 0) return;
  int err = errno;
  FILE *types = fopen("/proc/filesystems", "re");
  while (types != NULL && fgets(line, sizeof line, types) != NULL) {
    line[strcspn(line, "\n")] = 0;
    if (line[0] == '\t' && mount(ROOT_DISK, to, line + 1, MS_RDONLY | MS_NODEV, NULL) == 0) {
      fclose(types);
      return;
    }
  }
  boot_fail("Cannot mount the root disk " ROOT_DISK " with any file system of this kernel", err);
}

/* Gives the initramfs' memory back: removes what lies on its own device, never across a mount. */
static void empty(int parent, const char *name, dev_t device) {
  int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  struct stat st;
  if (fd < 0) return;
  DIR *dir = fstat(fd, &st) == 0 && st.st_dev == device ? fdopendir(fd) : NULL;
  if (dir == NULL) {
    close(fd);
    return;
  }
  for (struct dirent *e; (e = readdir(dir)) != NULL;) {
    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
    if (fstatat(fd, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0 || st.st_dev != device) continue;
    if (S_ISDIR(st.st_mode)) {
      empty(fd, e->d_name, device);
      unlinkat(fd, e->d_name, AT_REMOVEDIR);
    } else {
      unlinkat(fd, e->d_name, 0);
    }
  }
  closedir(dir);
}

static void switch_root(const char *to) {
  static const char *const moved[] = {"/dev", "/proc", "/sys"};
  struct stat root;
  char target[64];
  for (unsigned i = 0; i < sizeof moved / sizeof *moved; i++) {
    snprintf(target, sizeof target, "%s%s", to, moved[i]);
    mkdir(target, 0755);
    if (mount(moved[i], target, NULL, MS_MOVE, NULL) != 0) boot_fail("Cannot move a mount into the new root", errno);
  }
  if (stat("/", &root) == 0) empty(AT_FDCWD, "/", root.st_dev);
  if (chdir(to) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
    boot_fail("Cannot switch to the new root", errno);
}

static void link_fds(void) {
  static const char *const links[][2] = {{"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
    {"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}, {"pts/ptmx", "/dev/ptmx"}};
  unlink("/dev/ptmx"); /* devtmpfs makes a node; the one of the devpts instance is wanted */
  for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
    if (symlink(links[i][0], links[i][1]) != 0 && errno != EEXIST) boot_fail(links[i][1], errno);
}

static void loopback_up(void) {
  struct ifreq r;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return; /* a kernel without networking is fine */
  memset(&r, 0, sizeof r);
  strcpy(r.ifr_name, "lo");
  if (ioctl(fd, SIOCGIFFLAGS, &r) == 0) {
    r.ifr_flags |= IFF_UP;
    if (ioctl(fd, SIOCSIFFLAGS, &r) != 0) dprintf(2, "flurry-init: Cannot bring up lo: %s\n", errno_name(errno));
  }
  close(fd);
}

static bool port_is_ours(const char *entry) {
  char path[300], name[64] = "";
  snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  ssize_t n = read(fd, name, sizeof name - 1);
  close(fd);
  return n > 0 && strncmp(name, FL_PORT_NAME "\n", (size_t)n) == 0;
}

static int find_port(void) {
  int fd = -1;
  DIR *dir = opendir("/sys/class/virtio-ports");
  for (struct dirent *e; fd < 0 && dir != NULL && (e = readdir(dir)) != NULL;) {
    char path[300];
    if (e->d_name[0] == '.' || !port_is_ours(e->d_name)) continue;
    snprintf(path, sizeof path, "/dev/%s", e->d_name);
    fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  }
  if (dir != NULL) closedir(dir);
  return fd;
}

/* A port has its name only once QEMU's control message about it has come. */
static int open_port(void) {
  uint64_t deadline = now_ns() + DEVICE_LIMIT_NS;
  for (;;) {
    int fd = find_port();
    if (fd >= 0) return fd;
    if (!uevent_wait(deadline)) boot_fail("Cannot find the virtio-serial port " FL_PORT_NAME, ENODEV);
  }
}

int boot(void) {
  umask(0);
  mkdir("/dev", 0755);
  int no_dev = mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755") != 0 && errno != EBUSY ? errno : 0;
  open_console();
  if (no_dev != 0) boot_fail("Cannot mount devtmpfs on /dev", no_dev);
  must_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  must_mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  uevent_open(); /* before the drivers come, so that no announcement is missed */
  modules_load("/flurry/modules");
  mount_disk("/disk");
  must_mount("tmpfs", "/ram", "tmpfs", 0, "mode=0755");
  mkdir("/ram/upper", 0755);
  mkdir("/ram/work", 0755);
  must_mount("overlay", "/root", "overlay", 0, "lowerdir=/disk,upperdir=/ram/upper,workdir=/ram/work");
  /* The overlay holds both; out of the tree, nobody can change them behind its back. */
  umount2("/disk", MNT_DETACH);
  umount2("/ram", MNT_DETACH);
  switch_root("/root");
  must_mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
  must_mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  must_mount("tmpfs", "/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
  must_mount("tmpfs", "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
  link_fds();
  mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
  loopback_up();
  sethostname("flurry", 6);
  int port = open_port();
  uevent_close();
  return port;
}
