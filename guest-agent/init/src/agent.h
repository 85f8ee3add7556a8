/* The agent's one state and what its parts offer each other. Single-threaded throughout. */
#ifndef FLURRY_AGENT_H
#define FLURRY_AGENT_H

#include <signal.h>
#include <sys/types.h>

#include "message.h"
#include "sabotage.h"

/* Where the host is: a virtio-serial port (PID 1), an inherited descriptor, or a socket we listen
 * on (both for tests on an ordinary machine). */
enum channel_kind { CHANNEL_PORT, CHANNEL_FD, CHANNEL_LISTEN };

struct agent {
  bool is_init;        /* PID 1 of a VM: may mount, power off */
  bool sets_hostname;  /* identify may call sethostname */
  bool greeting_owed;  /* the next frame is preceded by the marker */
  bool stopping;
  uint32_t stop_id, stop_grace_ms;
  uint32_t index;
  char vm_id[FL_VM_ID_MAX + 1];
  const char *root; /* before the paths of what identifies a machine; "" but for tests */
  uint64_t ready_ns;
  sigset_t inherited_mask;
};
extern struct agent agent;

/* errnames.c: "ENOENT" for ENOENT, "E999" for what has no name here. */
const char *errno_name(int err);

/* tx.c: frames on their way to the host. */
struct mp_writer *tx_begin(uint32_t type, uint32_t id, uint32_t pairs);
void tx_end(void);
void tx_plain(uint32_t type, uint32_t id);
void tx_stream(uint32_t type, uint32_t id, uint32_t stream);
void tx_credit(uint32_t id, uint32_t stream, uint32_t bytes);
__attribute__((format(printf, 4, 5)))
void tx_error(uint32_t id, const char *code, int err, const char *format, ...);
/* A data frame in two steps, so that a pipe is read straight into it. NULL when the gate is shut. */
uint8_t *tx_data_room(uint32_t *room);
void tx_data(uint32_t id, uint32_t stream, uint32_t len);
/* Whether bulk data may be added (little is queued), and whether requests may be answered. */
bool tx_open_for_data(void);
bool tx_open_for_requests(void);
size_t tx_pending(const uint8_t **p);
void tx_sent(size_t n);
void tx_reset(void);

/* channel.c: the descriptor to the host. */
void channel_use(enum channel_kind kind, int fd);
void channel_event(uint32_t events);
bool channel_pump(void); /* read, dispatch, answer; true if there is more to do at once */
void channel_flush(void);
bool channel_blocked(void);

/* session.c */
void session_reset(void);
void session_dispatch(const uint8_t *payload, uint32_t len);

/* identity.c: what a fork goes through. While it is quiet, nothing but that is done. */
uint64_t now_ns(void);
void identity_hello(uint32_t id);
void identity_quiesce(const struct msg *m);
void identity_identify(const struct msg *m);
void identity_release(const struct msg *m);
bool identity_is_quiet(void);
bool identity_is_preparing(void);
bool identity_is_held(void); /* at rest, and told so: whoever comes next may be the host of a fork */
void identity_pump(void); /* answers what waits for hooks, when they have */
void identity_timer(void);
void identity_forget(void);

/* ids.c: what tells one machine from another. Times are of CLOCK_REALTIME. */
struct ids {
  uint32_t index;
  char vm_id[FL_VM_ID_MAX + 1], hostname[65], machine_id[64], boot_id[64], ssh_key[FL_SSH_KEY_MAX + 2];
  uint64_t before_ns, after_ns;
  uint32_t entropy_bytes;
  bool reseeded, vm_gen_id, has_ssh_keys;
  uint8_t draw[32];
};
void ids_boot(void);
void ids_watch(bool is_still);
bool ids_forked(void);
bool ids_clock(uint64_t ns);
void ids_vm(void);
/* Takes an identity. NULL, or which step failed, with errno. */
const char *ids_take(const struct msg *m, struct ids *ids);
void ids_read(struct ids *ids);
#ifdef FL_SABOTAGE
extern char sabotage[80];
void sabotage_lies(const struct msg *m, struct ids *ids);
#endif

/* hold.c: stops all other processes by then, or none. */
bool hold(uint64_t deadline_ns);
void hold_end(void);

/* hooks.c: programs that take part in a fork. Bytes of a line, of what one says of itself, and how long
 * they may take together. */
#define HOOK_LINE_MAX 512
#define HOOK_TEXT_MAX 256
#define HOOK_MS 5000
int socket_listen(const char *path); /* for anyone in the guest; -1 after the reason was told */
void hooks_listen(const char *path);
void hooks_accept(void);
bool hook_adopt(int fd);
void hooks_event(unsigned slot);
unsigned hooks_count(void);
bool hooks_has(pid_t pid);
void hooks_prepare(void);
void hooks_forked(void);
void hooks_go(const char *word); /* "go\n" or "resume\n" */
bool hooks_waiting(void);
void hooks_give_up(void);
bool hooks_failure(char *text, size_t size);
void hooks_write(struct mp_writer *w);

/* ops.c: what a request started and is still going on. */
enum op_kind { OP_FREE = 0, OP_EXEC, OP_PUT, OP_GET, OP_LIST, OP_CALL };
struct walk;
#define OPS_SIZE (FL_OPS_MAX + FL_CALLS_MAX)
struct op {
  enum op_kind kind;
  uint32_t id;
  uint32_t credit[3]; /* [IN]: bytes the host may still send; [OUT], [ERR]: bytes we may still send */
  int fd[3];
  bool polled[3];
  /* exec, call */
  pid_t pid;
  uid_t uid; /* of who calls, with its group */
  gid_t gid;
  bool exited;
  uint8_t *in_buf; /* FL_WINDOW_TO_GUEST bytes, only with stdin */
  uint32_t in_head, in_len, in_owed;
  bool in_ended; /* the host sent its last byte */
  bool in_gone;  /* the program reads no more */
  /* files */
  char *path, *temp;
  uint32_t mode;
  uint64_t total;
  struct walk *walk;
};
extern struct op ops[OPS_SIZE];
extern unsigned ops_live, calls_live;
/* A fresh operation, or NULL after the refusal was sent. */
struct op *op_new(uint32_t id, enum op_kind kind);
struct op *op_find(uint32_t id);
void op_free(struct op *op);
void op_poll(struct op *op, uint32_t stream, bool on);
void op_event(unsigned slot, uint32_t stream);
void op_data(const struct msg *m);
void op_end(const struct msg *m);
void op_credit(const struct msg *m);
void op_cancel(const struct msg *m);
bool ops_pump(void); /* lets transfers produce; true if there is more to do at once */
void ops_reset(void);
bool ops_drained(void); /* whether all is passed on that programs have written, as far as the host takes it */
void ops_inherit(void);
void ops_finish(struct op *op); /* frees it if it has come to its end */

/* calls.c: what programs of the guest ask of the host. */
void calls_listen(const char *path);
void calls_accept(void);
void calls_announce(void);

/* exec.c */
void exec_start(const struct msg *m);
void exec_kill(const struct msg *m);
void exec_output(struct op *op, uint32_t stream);
void exec_input(struct op *op);
void exec_input_data(struct op *op, const struct view *data);
void exec_close_stream(struct op *op, uint32_t stream);
void exec_reap(void);
void exec_signal_group(const struct op *op, int sig);

/* files.c, list.c */
void put_start(const struct msg *m);
void put_data(struct op *op, const struct view *data);
void put_finish(struct op *op);
void get_start(const struct msg *m);
bool get_produce(struct op *op); /* false if it can do nothing now */
void list_start(const struct msg *m);
bool list_produce(struct op *op);
void list_free(struct walk *walk);
/* A zero-terminated copy on the heap, or NULL after the refusal was sent. */
char *text_copy(uint32_t id, const struct view *v);

/* boot.c, modules.c, uevent.c: only as PID 1. */
int boot(void); /* the port's descriptor */
void boot_fail(const char *what, int err) __attribute__((noreturn));
void modules_load(const char *list);
void uevent_open(void);
void uevent_close(void);
/* Waits for the kernel to announce a device, at most until `deadline_ns`; false when it passed. */
bool uevent_wait(uint64_t deadline_ns);

/* stop.c */
void stop_now(void) __attribute__((noreturn));

/* main.c */
void watch(int fd, uint32_t events, uint64_t tag, bool pipes);
void rewatch(int fd, uint32_t events, uint64_t tag);
void unwatch(int fd, bool pipes);
#define TAG_CHANNEL 1u
#define TAG_SIGNAL 2u
#define TAG_PIPES 3u
#define TAG_TIMER 4u
#define TAG_HOOKS 5u
#define TAG_CALLS 6u
#define TAG_HOOK 16u /* and the hook's place */

#endif
