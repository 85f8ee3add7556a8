/* Forks a Flurry VM from inside.
 *
 *   struct flurry_fork fork;
 *   struct flurry_error error;
 *   if (flurry_fork(8, &fork, &error) != 0) ...error.code, error.text
 *   if (fork.id > 0) flurry_exit(0, result, length, &error);       one of eight new VMs
 *   struct flurry_child child;
 *   while (flurry_next(fork.ticket, -1, &child, &error) == 1) { ... flurry_child_free(&child); }
 *
 * Every call returns 0 (or what it says) on success, and -1 with `error` filled in. Each process speaks over a
 * connection of its own, which the first call opens; calls of several threads are for the caller to keep apart.
 * Protocol and codes: guest-agent/protocol/CALLS.md. Guide: docs/fork-calls.md. */
#ifndef FLURRY_H
#define FLURRY_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

#define FLURRY_NAME_MAX 33    /* of tickets and checkpoints, with the zero */
#define FLURRY_VM_MAX 129     /* of VMs */
#define FLURRY_RESULT_MAX 1048576

struct flurry_error {
  char code[33]; /* such as TICKET_REFUSED; NO_HOST outside of a VM, BAD_ANSWER when the host makes no sense */
  char text[1024];
};

struct flurry_ticket {
  char name[FLURRY_NAME_MAX];
  unsigned granted; /* places for children, at least 1 */
};

struct flurry_fork {
  unsigned id; /* 0 where it was called, 1 to `granted` in the children */
  char ticket[FLURRY_NAME_MAX];
  unsigned granted;
};

struct flurry_vm {
  unsigned id, generation;
  char name[FLURRY_VM_MAX], parent[FLURRY_VM_MAX]; /* parent: "" for a VM that was not forked by another */
};

enum flurry_state { FLURRY_EXITED, FLURRY_KILLED, FLURRY_DIED, FLURRY_FAILED };

struct flurry_file {
  unsigned long long size;
  char *path; /* in this VM */
};

struct flurry_child {
  unsigned id;
  char vm[FLURRY_VM_MAX];
  enum flurry_state state;
  int status;
  unsigned char *result; /* with a zero behind it; why it has not exited, if it has not */
  size_t length;
  struct flurry_file *files;
  size_t file_count;
};

/* Reserves places for up to `count` children; may grant fewer. `ms`: until it expires if it is not used, 0: 10 minutes. */
int flurry_request_ticket(unsigned count, unsigned ms, struct flurry_ticket *ticket, struct flurry_error *error);
/* Forks this VM: its id, 0 in the parent. */
int flurry_clone(const char *ticket, struct flurry_error *error);
/* Both in one. */
int flurry_fork(unsigned count, struct flurry_fork *fork, struct flurry_error *error);
/* Keeps this VM's state. Its id: 0 here, with the checkpoint's name (FLURRY_NAME_MAX bytes); more in each child that is
 * made of it later. */
int flurry_checkpoint_parent(char *checkpoint, struct flurry_error *error);
/* Has children wake at a checkpoint: how many. */
int flurry_create_clones(const char *checkpoint, const char *ticket, struct flurry_error *error);
/* Ends this child's VM. Does not return but for an error. */
int flurry_exit(int status, const void *result, size_t length, struct flurry_error *error);
/* The next child of a ticket that has ended: 1, or 0 when all have been told of. Waits up to `ms`, -1: as long as it
 * takes. */
int flurry_next(const char *ticket, long ms, struct flurry_child *child, struct flurry_error *error);
void flurry_child_free(struct flurry_child *child);
/* All of them: an array of `count`, each to be freed, and the array with free(). */
int flurry_join(const char *ticket, struct flurry_child **children, size_t *count, struct flurry_error *error);
/* Ends all children that run: how many those were. */
int flurry_kill(const char *ticket, struct flurry_error *error);
int flurry_vm(struct flurry_vm *vm, struct flurry_error *error);

const char *flurry_state_name(enum flurry_state state);

#ifdef __cplusplus
}
#endif

#endif
