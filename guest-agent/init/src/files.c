#include "agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CREDIT_STEP (FL_WINDOW_TO_GUEST / 4)

char *text_copy(uint32_t id, const struct view *v) {
  char *s = malloc(v->len + 1);
  if (s == NULL) {
    tx_error(id, FL_ERR_SYS, ENOMEM, "Cannot keep a path: %s", strerror(ENOMEM));
    return NULL;
  }
  memcpy(s, v->p, v->len);
  s[v->len] = 0;
  return s;
}

static void refuse(uint32_t id, const char *verb, const char *path, int err) {
  tx_error(id, FL_ERR_SYS, err, "Cannot %s \"%.300s\": %s", verb, path, strerror(err));
}

static bool make_parents(char *path) {
  for (char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    int done = mkdir(path, 0755);
    int err = errno;
    *slash = '/';
    if (done != 0 && err != EEXIST) {
      errno = err;
      return false;
    }
  }
  return true;
}

/* The bytes go to a temporary file next to the target, renamed at the end: nobody sees half a file. */
void put_start(const struct msg *m) {
  struct op *op = op_new(m->id, OP_PUT);
  if (op == NULL) return;
  op->mode = m->has_mode ? m->mode : 0644;
  op->path = text_copy(m->id, &m->path);
  size_t size = m->path.len + 32;
  char *temp = op->path != NULL ? malloc(size) : NULL;
  if (temp == NULL) {
    op_free(op);
    return;
  }
  char *slash = strrchr(op->path, '/');
  int dir_len = slash == NULL ? 0 : (int)(slash + 1 - op->path);
  snprintf(temp, size, "%.*s.flurry-%u", dir_len, op->path, m->id);
  int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
  int fd = open(temp, flags, 0600);
  if (fd < 0 && errno == ENOENT && make_parents(op->path)) fd = open(temp, flags, 0600);
  if (fd < 0) {
    refuse(m->id, "write", op->path, errno);
    free(temp);
    op_free(op);
    return;
  }
  op->temp = temp;
  op->fd[FL_STREAM_IN] = fd;
}

void put_data(struct op *op, const struct view *data) {
  for (uint32_t at = 0; at < data->len;) {
    ssize_t n = write(op->fd[FL_STREAM_IN], data->p + at, data->len - at);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      refuse(op->id, "write", op->path, errno);
      op_free(op);
      return;
    }
    at += (uint32_t)n;
  }
  op->total += data->len;
  op->in_owed += data->len;
  if (op->in_owed < CREDIT_STEP) return;
  op->credit[FL_STREAM_IN] += op->in_owed;
  tx_credit(op->id, FL_STREAM_IN, op->in_owed);
  op->in_owed = 0;
}

void put_finish(struct op *op) {
  if (fchmod(op->fd[FL_STREAM_IN], op->mode) != 0 || rename(op->temp, op->path) != 0) {
    refuse(op->id, "write", op->path, errno);
    op_free(op);
    return;
  }
  free(op->temp);
  op->temp = NULL;
  struct mp_writer *w = tx_begin(FL_MSG_OK, op->id, 1);
  mp_cstr(w, "size");
  mp_uint(w, op->total);
  tx_end();
  op_free(op);
}

void get_start(const struct msg *m) {
  struct op *op = op_new(m->id, OP_GET);
  if (op == NULL) return;
  op->path = text_copy(m->id, &m->path);
  if (op->path == NULL) {
    op_free(op);
    return;
  }
  struct stat st;
  /* O_NONBLOCK: a FIFO must not hold up the loop before it is refused. */
  int fd = open(op->path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
  int err = fd < 0 || fstat(fd, &st) != 0 ? errno : S_ISDIR(st.st_mode) ? EISDIR : S_ISREG(st.st_mode) ? 0 : EINVAL;
  if (err != 0) {
    if (fd >= 0) close(fd);
    refuse(m->id, "read", op->path, err);
    op_free(op);
    return;
  }
  op->fd[FL_STREAM_OUT] = fd;
  struct mp_writer *w = tx_begin(FL_MSG_FILE, m->id, 3);
  mp_cstr(w, "size");
  mp_uint(w, (uint64_t)st.st_size);
  mp_cstr(w, "mode");
  mp_uint(w, st.st_mode & 07777);
  mp_cstr(w, "mtimeMs");
  mp_uint(w, st.st_mtim.tv_sec < 0 ? 0 : (uint64_t)st.st_mtim.tv_sec * 1000 + (uint64_t)st.st_mtim.tv_nsec / 1000000);
  tx_end();
}

bool get_produce(struct op *op) {
  uint32_t room = op->credit[FL_STREAM_OUT];
  uint8_t *at = tx_data_room(&room);
  if (at == NULL) return false;
  ssize_t n = read(op->fd[FL_STREAM_OUT], at, room);
  if (n < 0 && errno == EINTR) return true;
  if (n < 0) {
    refuse(op->id, "read", op->path, errno);
    op_free(op);
    return true;
  }
  if (n == 0) {
    tx_stream(FL_MSG_END, op->id, FL_STREAM_OUT);
    op_free(op);
    return true;
  }
  op->credit[FL_STREAM_OUT] -= (uint32_t)n;
  tx_data(op->id, FL_STREAM_OUT, (uint32_t)n);
  return true;
}
