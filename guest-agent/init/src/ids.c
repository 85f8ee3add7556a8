#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* From linux/random.h, which a musl toolchain does not bring along. */
#define RNDADDENTROPY _IOW('R', 0x03, int[2])
#define RNDRESEEDCRNG _IO('R', 0x07)

#define BOOT_ID "/proc/sys/kernel/random/boot_id"
#define REPLUG_TEXT "due to virtual machine fork"

static int urandom = -1, kernel_log = -1;
/* Whether the image has SSH host keys: known since the freeze, so that children need not look. */
static bool has_ssh_keys;

static const char *at(const char *path) {
  static char text[512];
  snprintf(text, sizeof text, "%s%s", agent.root, path);
  return text;
}

static bool write_file(const char *path, const char *p, size_t len, mode_t mode) {
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
  if (fd < 0) return false;
  bool all = write(fd, p, len) == (ssize_t)len;
  int err = errno;
  close(fd);
  errno = err;
  return all;
}

/* The first line of a file; empty if there is none. */
static void read_line(const char *path, char *text, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  ssize_t n = fd >= 0 ? read(fd, text, size - 1) : -1;
  if (fd >= 0) close(fd);
  text[n > 0 ? n : 0] = 0;
  text[strcspn(text, "\n")] = 0;
}

static void complain(const char *what) {
  dprintf(2, "flurry-init: Cannot %s: %s\n", what, strerror(errno));
}

/* An image may have a link in place of a file that is to be written here and nowhere else. */
static void own_file(const char *path) {
  struct stat st;
  if (lstat(path, &st) == 0 && !S_ISREG(st.st_mode) && unlink(path) != 0) complain("replace /etc/machine-id");
}

/* Makes ready what a child changes: files are copied up from the disk here, once for all of them. */
void ids_boot(void) {
  char id[64], machine[64];
  unsigned n = 0;
  mkdir(at("/run"), 0755);
  mkdir(at("/run/flurry"), 0755);
  read_line(BOOT_ID, id, sizeof id);
  strcat(id, "\n");
  bool mounted = write_file(at("/run/flurry/boot_id"), id, strlen(id), 0444) &&
                 (!agent.is_init || mount("/run/flurry/boot_id", BOOT_ID, NULL, MS_BIND, NULL) == 0);
  if (!mounted) complain("give the machine a boot id that can be changed");
  for (const char *c = id; *c != 0; c++)
    if (*c != '-') machine[n++] = *c;
  mkdir(at("/etc"), 0755);
  own_file(at("/etc/machine-id"));
  if (!write_file(at("/etc/machine-id"), machine, n, 0444)) complain("write /etc/machine-id");
  /* D-Bus has a copy of its own where it was not told otherwise (machine-id(5)). */
  const char *copy = at("/var/lib/dbus/machine-id");
  if (access(copy, F_OK) == 0 && (unlink(copy) != 0 || symlink("/etc/machine-id", copy) != 0))
    complain("link /var/lib/dbus/machine-id");
  urandom = open("/dev/urandom", O_RDWR | O_CLOEXEC);
}

static bool find_ssh_keys(glob_t *found) {
  char pattern[512];
  snprintf(pattern, sizeof pattern, "%s/etc/ssh/ssh_host_*_key*", agent.root);
  return glob(pattern, 0, NULL, found) == 0;
}

/* Just before a freeze, or an identity without one: from here on the kernel's log is looked at, and nobody changes files. */
void ids_watch(void) {
  glob_t found;
  has_ssh_keys = find_ssh_keys(&found);
  if (has_ssh_keys) globfree(&found);
  if (!agent.is_init) return;
  if (kernel_log < 0) kernel_log = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
  if (kernel_log >= 0) lseek(kernel_log, 0, SEEK_END);
}

/* Whether the kernel has said since that it was forked: it learns that from vmgenid. */
bool ids_forked(void) {
  char text[1024];
  for (ssize_t n; kernel_log >= 0 && (n = read(kernel_log, text, sizeof text - 1)) > 0;) {
    text[n] = 0;
    if (strstr(text, REPLUG_TEXT) != NULL) return true;
  }
  return false;
}

static uint64_t realtime_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

bool ids_clock(uint64_t ns) {
  struct timespec t = {(time_t)(ns / 1000000000u), (long)(ns % 1000000000u)};
  return !agent.is_init || SKIPS("clock") || clock_settime(CLOCK_REALTIME, &t) == 0;
}

static const char *entropy(const struct msg *m, struct ids *ids) {
  struct {
    int bits, size;
    char bytes[FL_ENTROPY_MAX];
  } pool = {.bits = (int)m->entropy.len * 8, .size = (int)m->entropy.len};
  memcpy(pool.bytes, m->entropy.p, m->entropy.len);
  if (agent.is_init && !SKIPS("entropy")) {
    if (ioctl(urandom, RNDADDENTROPY, &pool) != 0) return "add entropy";
    ids->entropy_bytes = m->entropy.len;
  }
  if (agent.is_init && !SKIPS("reseed")) {
    if (ioctl(urandom, RNDRESEEDCRNG) != 0) return "reseed the kernel's generator";
    ids->reseeded = true;
  }
  if (SKIPS("draw")) memset(ids->draw, 7, sizeof ids->draw);
  else if (getrandom(ids->draw, sizeof ids->draw, 0) != (ssize_t)sizeof ids->draw) return "draw";
  return NULL;
}

/* Whatever the host sent, no child keeps its parent's keys. */
static bool replace_ssh_keys(const struct msg *m) {
  glob_t found;
  if (!has_ssh_keys || SKIPS("ssh") || !find_ssh_keys(&found)) return true;
  for (size_t i = 0; i < found.gl_pathc; i++) unlink(found.gl_pathv[i]);
  globfree(&found);
  if (!m->has_ssh_key) return true;
  return write_file(at("/etc/ssh/ssh_host_ed25519_key"), m->ssh_private.p, m->ssh_private.len, 0600) &&
         write_file(at("/etc/ssh/ssh_host_ed25519_key.pub"), m->ssh_public.p, m->ssh_public.len, 0644);
}

const char *ids_take(const struct msg *m, struct ids *ids) {
  char line[64];
  memset(ids, 0, sizeof *ids);
  const char *failed = entropy(m, ids);
  if (failed != NULL) return failed;
  ids->before_ns = realtime_ns();
  if (!ids_clock(m->realtime_ns)) return "set the clock";
  ids->after_ns = realtime_ns();
  if (!SKIPS("hostname") && sethostname(m->hostname.p, m->hostname.len) != 0) return "set the host name";
  if (agent.is_init || *agent.root != 0) {
    int n = snprintf(line, sizeof line, "%.*s\n", (int)m->machine_id.len, m->machine_id.p);
    if (!SKIPS("machineid") && !write_file(at("/etc/machine-id"), line, (size_t)n, 0444)) return "write /etc/machine-id";
    n = snprintf(line, sizeof line, "%.*s\n", (int)m->boot_id.len, m->boot_id.p);
    if (!SKIPS("bootid") && !write_file(at("/run/flurry/boot_id"), line, (size_t)n, 0444)) return "write the boot id";
    if (!replace_ssh_keys(m)) return "write the SSH host keys";
  }
  return NULL;
}

/* What the kernel and the files say now, not what was asked for. */
void ids_read(struct ids *ids) {
  struct utsname u;
  uname(&u);
  snprintf(ids->hostname, sizeof ids->hostname, "%s", u.nodename);
  read_line(at("/etc/machine-id"), ids->machine_id, sizeof ids->machine_id);
  read_line(agent.is_init ? BOOT_ID : at("/run/flurry/boot_id"), ids->boot_id, sizeof ids->boot_id);
  if (has_ssh_keys) read_line(at("/etc/ssh/ssh_host_ed25519_key.pub"), ids->ssh_key, sizeof ids->ssh_key);
  ids->vm_gen_id = ids_forked();
}
