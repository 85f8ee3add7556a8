#include <errno.h>
#include <stdio.h>

#include "agent.h"

#define NAMES(X) \
  X(EPERM) X(ENOENT) X(ESRCH) X(EINTR) X(EIO) X(ENXIO) X(E2BIG) X(ENOEXEC) X(EBADF) X(ECHILD) \
  X(EAGAIN) X(ENOMEM) X(EACCES) X(EFAULT) X(ENOTBLK) X(EBUSY) X(EEXIST) X(EXDEV) X(ENODEV) \
  X(ENOTDIR) X(EISDIR) X(EINVAL) X(ENFILE) X(EMFILE) X(ENOTTY) X(ETXTBSY) X(EFBIG) X(ENOSPC) \
  X(ESPIPE) X(EROFS) X(EMLINK) X(EPIPE) X(EDOM) X(ERANGE) X(EDEADLK) X(ENAMETOOLONG) X(ENOLCK) \
  X(ENOSYS) X(ENOTEMPTY) X(ELOOP) X(EOVERFLOW) X(EILSEQ) X(EUSERS) X(EOPNOTSUPP) X(EADDRINUSE) \
  X(ECONNRESET) X(ETIMEDOUT) X(ECONNREFUSED) X(EDQUOT) X(ESTALE) X(ELIBBAD) X(ELIBACC) X(ENODATA) \
  X(EKEYREJECTED) X(EPROTO) X(EBADMSG)

const char *errno_name(int err) {
  static char other[16];
  switch (err) {
#define NAME(e) case e: return #e;
    NAMES(NAME)
    default:
      snprintf(other, sizeof other, "E%d", err);
      return other;
  }
}
