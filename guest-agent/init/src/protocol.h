/* What both ends of the channel must agree on. The text is guest-agent/protocol/PROTOCOL.md, the
 * host's copy is guest-agent/protocol/constants.ts; a unit test compares the two by name. */
#ifndef FLURRY_PROTOCOL_H
#define FLURRY_PROTOCOL_H

#define FL_PROTOCOL_VERSION 3
#define FL_AGENT_VERSION "0.1.0"
#define FL_PORT_NAME "flurry.agent"

/* Starts a session, wherever it stands: no frame has these bytes in it. 0xff and 0xc1 occur neither in
 * UTF-8 nor as MessagePack tags, lengths are below 2^17, and the host cuts data inside of them. */
#define FL_MARKER "\xff\xc1\xc1\xc1" "FLR\n"
#define FL_MARKER_SIZE 8

#define FL_FRAME_MAX 65536
/* virtio_console takes at most 32 KiB a write: a data frame with its head fits into one. */
#define FL_CHUNK_MAX 32704
#define FL_WINDOW_TO_HOST 262144
#define FL_WINDOW_TO_GUEST 131072
#define FL_OPS_MAX 64
#define FL_CALLS_MAX 192
#define FL_CALL_IDS 2147483648u
#define FL_ARGS_MAX 1024
#define FL_PATH_MAX 4096
#define FL_DEPTH_MAX 64
#define FL_VM_ID_MAX 128
#define FL_ENTROPY_MAX 128
#define FL_ENTROPY_MIN 32
#define FL_SSH_KEY_MAX 4096
#define FL_HOOKS_MAX 64

#define FL_MSG_HELLO 1
#define FL_MSG_PING 2
#define FL_MSG_PONG 3
#define FL_MSG_IDENTIFY 4
#define FL_MSG_IDENTIFIED 5
#define FL_MSG_QUIESCE 6
#define FL_MSG_QUIESCED 7
#define FL_MSG_SHUTDOWN 8
#define FL_MSG_STOPPING 9
#define FL_MSG_RELEASE 10
#define FL_MSG_EXEC 16
#define FL_MSG_STARTED 17
#define FL_MSG_EXIT 18
#define FL_MSG_KILL 19
#define FL_MSG_CALL 20
#define FL_MSG_PUT 32
#define FL_MSG_GET 33
#define FL_MSG_LIST 34
#define FL_MSG_FILE 35
#define FL_MSG_DATA 48
#define FL_MSG_END 49
#define FL_MSG_CREDIT 50
#define FL_MSG_CANCEL 51
#define FL_MSG_OK 52
#define FL_MSG_ERROR 53

#define FL_STREAM_IN 0
#define FL_STREAM_OUT 1
#define FL_STREAM_ERR 2

#define FL_ERR_SYS "SYS"
#define FL_ERR_BAD_MESSAGE "BAD_MESSAGE"
#define FL_ERR_UNKNOWN_TYPE "UNKNOWN_TYPE"
#define FL_ERR_FRAME_TOO_LARGE "FRAME_TOO_LARGE"
#define FL_ERR_BUSY "BUSY"
#define FL_ERR_LIMIT "LIMIT"
#define FL_ERR_NO_SUCH_ID "NO_SUCH_ID"
#define FL_ERR_ID_IN_USE "ID_IN_USE"
#define FL_ERR_FLOW "FLOW"
#define FL_ERR_STATE "STATE"

#endif
