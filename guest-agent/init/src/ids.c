#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
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
#define MACHINE_ID "/etc/machine-id"
#define REPLUG_TEXT "due to virtual machine fork"

/* Two ids are files in memory, mounted over the names by which programs know them: on an overlay a write costs
 * a fresh child 20 ms. They are written through `file`, and read back through `name`. */
struct id_file {
  const char *name;
  uint32_t size; /* with the end of its line */
  int file, seen;
  char *page; /* the file's memory: to write there, a child need not run the kernel's code for it first */
};
static struct id_file machine_id = {MACHINE_ID, 33, -1, -1, NULL}, boot_id = {BOOT_ID, 37, -1, -1, NULL};
static int urandom = -1, kernel_log = -1;
/* The one line of /run/flurry/vm, mapped: a child writes it without a call. */
static char *vm_line;
#define VM_LINE_SIZE (FL_VM_ID_MAX + 12)
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

/* What an open file says first, up to the end of a line; empty if it cannot be read. */
static void read_line(int fd, char *text, size_t size) {
  ssize_t n = fd >= 0 ? pread(fd, text, size - 1, 0) : -1;
  text[n > 0 ? n : 0] = 0;
  text[strcspn(text, "\n")] = 0;
}

static void complain(const char *what) {
  dprintf(2, "flurry-init: Cannot %s: %s\n", what, strerror(errno));
}

/* Where there is a file to mount over: an image may lack it, or have a link that leads elsewhere. */
static bool has_place(const char *path) {
  struct stat st;
  if (lstat(path, &st) == 0 && S_ISREG(st.st_mode)) return true;
  unlink(path);
  return write_file(path, "", 0, 0444);
}

/* Writes an id for the first time; `id->name` shows it from then on. */
static void id_begin(struct id_file *id, const char *path, const char *text) {
  char file[512];
  snprintf(file, sizeof file, "%s%s", agent.root, path);
  id->file = open(file, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0444);
  bool done = id->file >= 0 && pwrite(id->file, text, strlen(text), 0) == (ssize_t)strlen(text);
  if (done && agent.is_init) done = mount(file, id->name, NULL, MS_BIND, NULL) == 0;
  if (!done) complain(id->name);
}

/* Makes ready what a child changes. */
void ids_boot(void) {
  char id[64], machine[64];
  unsigned n = 0;
  mkdir(at("/run"), 0755);
  mkdir(at("/run/flurry"), 0755);
  mkdir(at("/etc"), 0755);
  int fd = open(BOOT_ID, O_RDONLY | O_CLOEXEC);
  read_line(fd, id, sizeof id - 1);
  close(fd);
  strcat(id, "\n");
  for (const char *c = id; *c != 0; c++)
    if (*c != '-') machine[n++] = *c;
  machine[n] = 0;
  if (agent.is_init && !has_place(MACHINE_ID)) complain("write " MACHINE_ID);
  id_begin(&machine_id, agent.is_init ? "/run/flurry/machine-id" : MACHINE_ID, machine);
  id_begin(&boot_id, "/run/flurry/boot_id", id);
  /* D-Bus has a copy of its own where it was not told otherwise (machine-id(5)). */
  const char *copy = at("/var/lib/dbus/machine-id");
  if (access(copy, F_OK) == 0 && (unlink(copy) != 0 || symlink(MACHINE_ID, copy) != 0))
    complain("link /var/lib/dbus/machine-id");
  int vm = open(at("/run/flurry/vm"), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0444);
  bool sized = vm >= 0 && ftruncate(vm, VM_LINE_SIZE) == 0;
  void *mapped = sized ? mmap(NULL, VM_LINE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, vm, 0) : MAP_FAILED;
  if (vm >= 0) close(vm);
  if (mapped == MAP_FAILED) complain("write /run/flurry/vm");
  else vm_line = mapped;
  ids_vm(); /* so that the page is there */
  urandom = open("/dev/urandom", O_RDWR | O_CLOEXEC);
}

/* Tells every program which VM this is: its id and its index, on one line of /run/flurry/vm. */
void ids_vm(void) {
  if (vm_line == NULL) return;
  int n = snprintf(vm_line, VM_LINE_SIZE, "%s %u", agent.vm_id, agent.index);
  memset(vm_line + n, ' ', (size_t)(VM_LINE_SIZE - 1 - n)); /* of one length, whatever is in it */
  vm_line[VM_LINE_SIZE - 1] = '\n';
}

/* Opens it as a program would, whatever has become of the name since the boot. */
static void id_look(struct id_file *id) {
  if (id->seen >= 0) close(id->seen);
  id->seen = agent.is_init ? open(id->name, O_RDONLY | O_CLOEXEC) : dup(id->file);
}

/* Only while nobody else runs: a file that is cut short under its mapping would end this process. */
static void id_map(struct id_file *id, bool is_still) {
  struct stat st;
  if (id->page != NULL) munmap(id->page, id->size);
  id->page = NULL;
  if (!is_still || id->file < 0 || fstat(id->file, &st) != 0) return;
  if (st.st_size < id->size && ftruncate(id->file, id->size) != 0) return;
  void *page = mmap(NULL, id->size, PROT_READ | PROT_WRITE, MAP_SHARED, id->file, 0);
  if (page == MAP_FAILED) return;
  id->page = page;
  volatile char *first = page;
  *first = *first; /* the fault happens here, and not in each child */
}

static bool id_write(const struct id_file *id, const struct view *text) {
  char line[64];
  int n = snprintf(line, sizeof line, "%.*s\n", (int)text->len, text->p);
  if (id->page == NULL) return pwrite(id->file, line, (size_t)n, 0) == n;
  memcpy(id->page, line, id->size);
  return true;
}

static bool find_ssh_keys(glob_t *found) {
  char pattern[512];
  snprintf(pattern, sizeof pattern, "%s/etc/ssh/ssh_host_*_key*", agent.root);
  return glob(pattern, 0, NULL, found) == 0;
}

/* Before an identity is taken, which for a fork is just before the freeze, when all stand still. What can be
 * done here is done once for all children. */
void ids_watch(bool is_still) {
  glob_t found;
  has_ssh_keys = find_ssh_keys(&found);
  if (has_ssh_keys) globfree(&found);
  id_look(&machine_id);
  id_look(&boot_id);
  id_map(&machine_id, is_still);
  id_map(&boot_id, is_still);
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
  memset(ids, 0, sizeof *ids);
  const char *failed = entropy(m, ids);
  if (failed != NULL) return failed;
  ids->before_ns = realtime_ns();
  if (!ids_clock(m->realtime_ns)) return "set the clock";
  ids->after_ns = realtime_ns();
  if (!SKIPS("hostname") && sethostname(m->hostname.p, m->hostname.len) != 0) return "set the host name";
  if (!agent.is_init && *agent.root == 0) return NULL;
  if (!SKIPS("machineid") && !id_write(&machine_id, &m->machine_id)) return "write " MACHINE_ID;
  if (!SKIPS("bootid") && !id_write(&boot_id, &m->boot_id)) return "write the boot id";
  return replace_ssh_keys(m) ? NULL : "write the SSH host keys";
}

static void read_ssh_key(char *text, size_t size) {
  int fd = open(at("/etc/ssh/ssh_host_ed25519_key.pub"), O_RDONLY | O_CLOEXEC);
  read_line(fd, text, size);
  if (fd >= 0) close(fd);
}

/* What the kernel and the files say now, not what was asked for. */
void ids_read(struct ids *ids) {
  struct utsname u;
  uname(&u);
  snprintf(ids->hostname, sizeof ids->hostname, "%s", u.nodename);
  read_line(machine_id.seen, ids->machine_id, sizeof ids->machine_id);
  read_line(boot_id.seen, ids->boot_id, sizeof ids->boot_id);
  ids->has_ssh_keys = has_ssh_keys;
  if (has_ssh_keys) read_ssh_key(ids->ssh_key, sizeof ids->ssh_key);
  ids->vm_gen_id = ids_forked();
}
