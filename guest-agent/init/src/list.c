#include "agent.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* One entry at most: array head, a path, four numbers or words. */
#define ENTRY_MAX (FL_PATH_MAX + 64)

/* A walk in progress: one open directory a level, and the path of the deepest one. */
struct walk {
  DIR *dir[FL_DEPTH_MAX];
  uint32_t base[FL_DEPTH_MAX]; /* where the level's own names begin in `path` */
  unsigned depth;
  bool ended;
  char path[FL_PATH_MAX];
  uint8_t held[ENTRY_MAX]; /* an entry that did not fit the last frame */
  uint32_t held_len;
};

void list_free(struct walk *walk) {
  if (walk == NULL) return;
  while (walk->depth > 0) closedir(walk->dir[--walk->depth]);
  free(walk);
}

static int descend(struct walk *walk, int at, const char *name, uint32_t base) {
  int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | (at == AT_FDCWD ? 0 : O_NOFOLLOW));
  if (fd < 0) return errno;
  DIR *dir = fdopendir(fd);
  if (dir == NULL) {
    int err = errno;
    close(fd);
    return err;
  }
  walk->dir[walk->depth] = dir;
  walk->base[walk->depth++] = base;
  return 0;
}

void list_start(const struct msg *m) {
  struct op *op = op_new(m->id, OP_LIST);
  if (op == NULL) return;
  op->path = text_copy(m->id, &m->path);
  op->walk = op->path != NULL ? calloc(1, sizeof *op->walk) : NULL;
  int err = op->walk == NULL ? ENOMEM : descend(op->walk, AT_FDCWD, op->path, 0);
  if (err != 0) {
    tx_error(m->id, FL_ERR_SYS, err, "Cannot list \"%.300s\": %s", op->path != NULL ? op->path : "", strerror(err));
    op_free(op);
    return;
  }
  tx_plain(FL_MSG_OK, m->id);
}

static const char *type_of(mode_t mode) {
  return S_ISREG(mode) ? "file" : S_ISDIR(mode) ? "dir" : S_ISLNK(mode) ? "symlink" : "other";
}

static void encode(struct walk *walk, size_t path_len, const struct stat *st) {
  struct mp_writer w = {walk->held, walk->held + sizeof walk->held, false};
  mp_array(&w, 5);
  mp_str(&w, walk->path, path_len);
  mp_cstr(&w, type_of(st->st_mode));
  mp_uint(&w, S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0);
  mp_uint(&w, st->st_mode & 07777);
  mp_uint(&w, st->st_mtim.tv_sec < 0 ? 0 : (uint64_t)st->st_mtim.tv_sec * 1000 + (uint64_t)st->st_mtim.tv_nsec / 1000000);
  walk->held_len = (uint32_t)(w.p - walk->held);
}

/* Encodes the next entry into `held`; leaves it empty at the end of a level. Returns an errno. */
static int step(struct walk *walk) {
  unsigned level = walk->depth - 1;
  errno = 0;
  struct dirent *e = readdir(walk->dir[level]);
  if (e == NULL) {
    if (errno != 0) return errno;
    closedir(walk->dir[--walk->depth]);
    walk->ended = walk->depth == 0;
    return 0;
  }
  if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) return 0;
  size_t base = walk->base[level], len = strlen(e->d_name);
  if (base + len + 2 > sizeof walk->path) return ENAMETOOLONG;
  memcpy(walk->path + base, e->d_name, len + 1);
  struct stat st;
  int at = dirfd(walk->dir[level]);
  if (fstatat(at, e->d_name, &st, AT_SYMLINK_NOFOLLOW) != 0) return errno == ENOENT ? 0 : errno;
  encode(walk, base + len, &st);
  if (!S_ISDIR(st.st_mode)) return 0;
  if (walk->depth == FL_DEPTH_MAX) return ELOOP;
  memcpy(walk->path + base + len, "/", 2);
  int err = descend(walk, at, e->d_name, (uint32_t)(base + len + 1));
  return err == ENOENT ? 0 : err;
}

/* Fills one data frame with whole entries. Bounded work a turn, so that control stays quick. */
bool list_produce(struct op *op) {
  struct walk *walk = op->walk;
  uint32_t room = op->credit[FL_STREAM_OUT], used = 0;
  if (walk->held_len > room) return false; /* until there is credit for a whole entry */
  uint8_t *at = tx_data_room(&room);
  if (at == NULL) return false;
  for (unsigned turn = 0; turn < 256 && !walk->ended; turn++) {
    int err = walk->held_len == 0 ? step(walk) : 0;
    if (err != 0) {
      tx_error(op->id, FL_ERR_SYS, err, "Cannot list \"%.300s\" in \"%.100s\": %s", walk->path, op->path, strerror(err));
      op_free(op);
      return true;
    }
    if (walk->held_len > room - used) break;
    memcpy(at + used, walk->held, walk->held_len);
    used += walk->held_len;
    walk->held_len = 0;
  }
  if (used > 0) {
    op->credit[FL_STREAM_OUT] -= used;
    tx_data(op->id, FL_STREAM_OUT, used);
  }
  if (walk->ended && walk->held_len == 0) {
    tx_stream(FL_MSG_END, op->id, FL_STREAM_OUT);
    op_free(op);
  }
  return true;
}
