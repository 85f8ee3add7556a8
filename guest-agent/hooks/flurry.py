"""Takes part in the forks of a Flurry VM.

    import flurry

    @flurry.on_fork
    def renew(fork):
        cache.clear()  # fork.vm, fork.index and fork.seed are this child's own

A Python program that runs when a VM is frozen goes on in each of its children, with the same random
numbers to come. With this module it stops before the freeze and goes on when its child has proven who it
is; before that `random` is seeded anew, and what else of the standard library keeps random state.

All happens in a signal handler of the main thread, so that no other code of that thread runs meanwhile.
Other threads do not stop: they are the program's own business. A main thread that is in C code for more
than five seconds keeps the VM from being frozen.

One file, standard library only. Protocol: guest-agent/protocol/PROTOCOL.md, "Hooks".
"""

import os
import random
import signal
import socket
import sys
from collections import namedtuple

SOCKET = "/run/flurry/fork.sock"

Fork = namedtuple("Fork", ["vm", "index", "seed"])
"""A new child: its name, its place in its family from 0 on, and 32 random bytes of its own."""

_callbacks = []
_connection = None


def on_fork(callback):
    """Has `callback(fork)` called in each child, before any other code of the main thread.

    What it raises fails the fork: the child is killed, and its task is given to another. Raises OSError
    where there is no Flurry, and ValueError outside of the main thread.
    """
    join()
    _callbacks.append(callback)
    return callback


def join(name="python", signum=signal.SIGUSR2):
    """Takes part in forks from now on; `on_fork` calls it by itself. `signum` is this module's alone."""
    global _connection
    if _connection is not None:
        return
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(SOCKET)
        signal.signal(signum, _handle)
        _say(connection, "hook %s %d %d" % (name, os.getpid(), signum))
        answer = _line(connection)
        if answer != "ok":
            raise OSError("the agent refuses this fork hook: " + answer)
    except BaseException:
        connection.close()
        raise
    _connection = connection


def _handle(_signum, _frame):
    connection = _connection
    if connection is None or _line(connection) != "prepare":
        return
    _say(connection, "ready")
    words = _line(connection).split(" ")
    if words[0] != "forked":
        return
    try:
        fork = Fork(words[1], int(words[2]), bytes.fromhex(words[3]))
        _renew(fork.seed)
        for callback in _callbacks:
            callback(fork)
    except BaseException as error:
        _say(connection, "failed %r" % (error,))
        raise
    _say(connection, "done %032x" % random.SystemRandom().getrandbits(128))
    _line(connection)


def _renew(seed):
    random.seed(seed)
    if "ssl" in sys.modules:
        sys.modules["ssl"].RAND_add(seed, float(len(seed)))
    if "tempfile" in sys.modules:
        sys.modules["tempfile"]._name_sequence = None
    if "uuid" in sys.modules:
        sys.modules["uuid"]._node = sys.modules["uuid"]._last_timestamp = None
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(list(seed))


def _say(connection, text):
    connection.sendall((text[:500].replace("\n", " ") + "\n").encode())


def _line(connection):
    # Byte by byte: nothing of what comes after it may be taken.
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if byte == b"":
            raise OSError("the agent has closed this program's fork hook")
        line += byte
    return line[:-1].decode()
