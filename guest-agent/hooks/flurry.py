"""Forks a Flurry VM from inside, and takes part in its forks.

    import flurry

    id, ticket, granted = flurry.fork(8)
    if id > 0:  # one of eight new VMs, with all that this one has
        flurry.exit(0, str(work(id)))
    for child in flurry.join(ticket):
        print(child.id, child.state, child.result)

Calls are methods of a connection to the agent, which each process opens for itself. What the host refuses is a
FlurryError with the `code` of guest-agent/protocol/CALLS.md. docs/fork-calls.md is the guide.

For programs that run when their VM is forked by others:

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

import json
import os
import random
import signal
import socket
import sys
import threading
from collections import namedtuple

SOCKET = "/run/flurry/fork.sock"
CALLS = "/run/flurry/vm.sock"
RESULT_MAX = 1 << 20

Forked = namedtuple("Forked", ["id", "ticket", "granted"])
"""Which VM this is: 0 where fork was called, 1 to `granted` in the children, which have no use for the ticket."""

Ticket = namedtuple("Ticket", ["name", "granted"])
"""Places for `granted` children."""

Child = namedtuple("Child", ["id", "vm", "state", "status", "result", "files"])
"""How a child ended. state: exited, killed, died or failed; result: bytes; files: paths in this VM."""

Vm = namedtuple("Vm", ["id", "vm", "generation", "parent"])
"""Its id in its ticket, its name, how many forks it is away from the first one, and its parent's name or None."""


class FlurryError(Exception):
    """What was asked for was refused; `code` says why in one word."""

    def __init__(self, code, message):
        super().__init__("%s: %s" % (code, message))
        self.code = code

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


class _Call:
    """One conversation with the host. Interrupted reads go on: a fork hook may run in a signal handler meanwhile."""

    def __init__(self):
        self.pid = os.getpid()
        self._unread = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(os.environ.get("FLURRY_VM_SOCKET", CALLS))
        except OSError as error:
            self._socket.close()
            raise FlurryError("NO_HOST", "this is no Flurry VM: %s" % error) from error

    def ask(self, request, body=b""):
        """Words of the answer, without its `ok`."""
        words = self.words(request, body)
        if words[0] != "ok":
            raise FlurryError("BAD_ANSWER", "the host answered %r" % " ".join(words))
        return words[1:]

    def words(self, request, body=b""):
        try:
            self._socket.sendall(request.encode("ascii") + b"\n" + body)
            line = self.line()
        except OSError as error:
            raise FlurryError("NO_HOST", "the host is gone: %s" % error) from error
        kind, _, rest = line.partition(" ")
        if kind == "error":
            code, _, text = rest.partition(" ")
            raise FlurryError(code, text)
        return line.split(" ")

    def line(self):
        while b"\n" not in self._unread:
            if len(self._unread) > 65536:
                raise FlurryError("BAD_ANSWER", "a line is too long")
            self._more()
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("utf-8", "surrogateescape")

    def bytes(self, count):
        while len(self._unread) < count:
            self._more()
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def _more(self):
        more = self._socket.recv(65536)
        if more == b"":
            raise FlurryError("NO_HOST", "the host has ended the call")
        self._unread += more


_calls = threading.local()


def _call():
    call = getattr(_calls, "call", None)
    # A process made by os.fork() has one of its own, as each thread has.
    if call is None or call.pid != os.getpid():
        call = _calls.call = _Call()
    return call


def _failing(function):
    def checked(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except FlurryError as error:
            # What came of the answer is unknown: the next call begins a conversation anew.
            if error.code in ("NO_HOST", "BAD_ANSWER", "BAD_CALL"):
                _calls.call = None
            raise

    checked.__name__, checked.__doc__ = function.__name__, function.__doc__
    return checked


@_failing
def request_ticket(n, timeout=None):
    """Reserves places for up to `n` children; may grant fewer, and at least one. `timeout`: seconds until it expires."""
    more = "" if timeout is None else " %d" % max(1, int(timeout * 1000))
    name, granted, _ = _call().ask("ticket %d%s" % (n, more))
    return Ticket(name, int(granted))


@_failing
def clone(ticket):
    """Forks this VM: 0 here, and 1 to ticket.granted in the children."""
    return _came_out(int(_call().ask("clone " + _name(ticket))[0]))


@_failing
def fork(n):
    """request_ticket and clone in one."""
    id, name, granted = _call().ask("fork %d" % n)
    return Forked(_came_out(int(id)), Ticket(name, int(granted)), int(granted))


@_failing
def checkpoint_parent():
    """Keeps this VM's state: (0, checkpoint) here, and (id, None) in each child that is made of it later."""
    id, name = _call().ask("checkpoint")
    return _came_out(int(id)), (name if id == "0" else None)


@_failing
def create_clones(checkpoint, ticket):
    """Has children wake at the checkpoint; how many."""
    return int(_call().ask("create %s %s" % (checkpoint, _name(ticket)))[0])


@_failing
def exit(status=0, result=b""):
    """Ends this child. `result`: bytes, a text, or anything that JSON can hold; up to 1 MiB."""
    if isinstance(result, str):
        result = result.encode()
    elif not isinstance(result, (bytes, bytearray)):
        result = json.dumps(result).encode()
    if len(result) > RESULT_MAX:
        raise FlurryError("BAD_CALL", "a result has at most %d bytes" % RESULT_MAX)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    _call().ask("exit %d %d" % (status, len(result)), bytes(result))
    raise FlurryError("BAD_ANSWER", "the VM goes on after exit")


@_failing
def next_child(ticket, timeout=None):
    """The next child that has ended, each of them once; None when all have been told of. `timeout`: seconds."""
    call = _call()
    more = "" if timeout is None else " %d" % max(0, int(timeout * 1000))
    words = call.words("next " + _name(ticket) + more)
    if words == ["end"]:
        return None
    if len(words) != 7 or words[0] != "child" or not 0 <= int(words[5]) <= RESULT_MAX:
        raise FlurryError("BAD_ANSWER", "the host answered %r" % " ".join(words))
    result = call.bytes(int(words[5]))
    files = [call.line().split(" ", 2)[2] for _ in range(int(words[6]))]
    return Child(int(words[1]), words[2], words[3], int(words[4]), result, files)


def ended(ticket):
    """Children as they end."""
    while True:
        child = next_child(ticket)
        if child is None:
            return
        yield child


def join(ticket):
    """All children that have not been told of, by id, when the last one has ended."""
    return sorted(ended(ticket))


@_failing
def kill(ticket):
    """Ends all children that run; how many those were. `join` tells of them too."""
    return int(_call().ask("kill " + _name(ticket))[0])


@_failing
def vm():
    """Who this VM is."""
    id, name, generation, parent = _call().ask("id")
    return Vm(int(id), name, int(generation), None if parent == "-" else parent)


def _came_out(id):
    # One that takes part by a hook has been renewed there.
    if id > 0 and _connection is None:
        _renew(os.urandom(32))
    return id


def _name(ticket):
    return ticket if isinstance(ticket, str) else ticket.name


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
