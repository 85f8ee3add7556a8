"""Forks a Flurry VM from inside, and takes part in its forks.

    import flurry

    id, ticket, granted = flurry.fork(8)
    if id > 0:  # one of eight new VMs, with all that this one has
        flurry.exit(0, str(work(id)))
    for child in flurry.join(ticket):
        print(child.id, child.state, child.result)

Each thread of each process has a connection of its own, which its first call opens. What the host refuses is a
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
import re
import signal
import socket
import sys
import threading
from collections import namedtuple

SOCKET = "/run/flurry/fork.sock"
CALLS = "/run/flurry/vm.sock"
RESULT_MAX = 1 << 20
FILES_MAX = 100000
LINE_MAX = 65536

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
        self._goes_on = False  # the conversation


Fork = namedtuple("Fork", ["vm", "index", "seed"])
"""A new child: its name, its place in its family from 0 on, and 32 random bytes of its own."""

_callbacks = []
_connection = None


def on_fork(callback):
    """Has `callback(fork)` called in each child, before any other code of the main thread.

    What it raises fails the fork: the child is killed, and its task is given to another. Raises OSError
    where there is no Flurry, and ValueError outside of the main thread.
    """
    take_part()
    _callbacks.append(callback)
    return callback


def take_part(name="python", signum=signal.SIGUSR2):
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
    """A conversation with the host. Interrupted reads go on: a fork hook may run in a signal handler meanwhile."""

    def __init__(self):
        self.pid = os.getpid()
        self._unread = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(None)  # whatever the program has as its default
        try:
            self._socket.connect(os.environ.get("FLURRY_VM_SOCKET") or CALLS)
        except OSError as error:
            self._socket.close()
            raise FlurryError("NO_HOST", "this is no Flurry VM: %s" % error) from error

    def serves(self):
        """Whether it may be used again: nothing is said without a question, unless it is over."""
        if self.pid != os.getpid() or self._unread:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self):
        self._socket.close()

    def request(self, request, body=b""):
        """The line that answers."""
        said = True
        try:
            self._socket.sendall(request.encode("ascii") + b"\n" + body)
        except OSError:
            said = False  # the host may have told why before it ended the call
        line = self.line()
        kind, _, rest = line.partition(" ")
        if kind == "error":
            code, _, text = rest.partition(" ")
            error = FlurryError(code, text)
            # After these the host ends the call, and may do so a moment later.
            error._goes_on = said and code not in ("BAD_CALL", "FORK_DENIED", "FORKED")
            raise error
        return line if said else _bad(line)

    def line(self):
        while b"\n" not in self._unread:
            if len(self._unread) >= LINE_MAX:
                _bad("a line without an end")
            self._more()
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode("utf-8", "surrogateescape")

    def bytes(self, count):
        while len(self._unread) < count:
            self._more()
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def _more(self):
        try:
            more = self._socket.recv(65536)
        except OSError as error:
            raise FlurryError("NO_HOST", "the host is gone: %s" % error) from error
        if more == b"":
            raise FlurryError("NO_HOST", "the host has ended the call")
        self._unread += more


_calls = threading.local()


def _call():
    call = getattr(_calls, "call", None)
    if call is None or not call.serves():
        _hang_up()
        call = _calls.call = _Call()
    return call


def _hang_up():
    # One of the process that has made this one by os.fork() goes on there.
    call = getattr(_calls, "call", None)
    _calls.call = None
    if call is not None:
        call.close()


def _failing(function):
    def checked(*args, **kwargs):
        if getattr(_calls, "busy", False):  # a signal handler, whose answer would be the other one's
            raise FlurryError("BAD_CALL", "this thread has a call under way")
        _calls.busy = True
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            # Where the conversation has come to is unknown, unless the host has refused: the next call begins anew.
            if not getattr(error, "_goes_on", False):
                _hang_up()
            raise
        finally:
            _calls.busy = False

    checked.__name__, checked.__doc__ = function.__name__, function.__doc__
    return checked


def _bad(answer):
    raise FlurryError("BAD_ANSWER", "the host answered %r" % answer[:200])


def _within(word, least, most):
    value = int(word)
    return value if least <= value <= most else _bad("%s, which is not from %d to %d" % (word, least, most))


_WORD, _NUMBER = "([a-z0-9]{1,32})", "([0-9]{1,19})"


def _ask(request, pattern):
    """What the parentheses of `pattern` have found in the answer."""
    line = _call().request(request)
    found = re.fullmatch("ok " + pattern, line)
    return found.groups() if found else _bad(line)


@_failing
def request_ticket(n, timeout=None):
    """Reserves places for up to `n` children; may grant fewer, and at least one. `timeout`: seconds until it expires."""
    more = "" if timeout is None else " %d" % max(1, int(timeout * 1000))
    name, granted, _ = _ask("ticket %d%s" % (n, more), "%s %s %s" % (_WORD, _NUMBER, _NUMBER))
    return Ticket(name, _within(granted, 1, n))


@_failing
def clone(ticket):
    """Forks this VM: 0 here, and 1 to ticket.granted in the children."""
    _flush()
    id, granted = _ask("clone " + _name(ticket), "%s %s" % (_NUMBER, _NUMBER))
    return _came_out(_within(id, 0, int(granted)))


@_failing
def fork(n):
    """request_ticket and clone in one."""
    _flush()
    id, name, granted = _ask("fork %d" % n, "%s %s %s" % (_NUMBER, _WORD, _NUMBER))
    granted = _within(granted, 1, n)
    return Forked(_came_out(_within(id, 0, granted)), Ticket(name, granted), granted)


@_failing
def checkpoint_parent():
    """Keeps this VM's state: (0, checkpoint) here, and (id, None) in each child that is made of it later."""
    _flush()
    id, name = _ask("checkpoint", "%s %s" % (_NUMBER, _WORD))
    return _came_out(int(id)), (name if id == "0" else None)


@_failing
def create_clones(checkpoint, ticket):
    """Has children wake at the checkpoint; how many."""
    return int(_ask("create %s %s" % (_name(checkpoint), _name(ticket)), _NUMBER)[0])


@_failing
def exit(status=0, result=b""):
    """Ends this child. `result`: bytes, a text, or anything that JSON can hold; up to 1 MiB."""
    if isinstance(result, str):
        result = result.encode()
    elif not isinstance(result, (bytes, bytearray)):
        result = json.dumps(result).encode()
    if not 0 <= status <= 255:
        raise FlurryError("BAD_CALL", "a status is from 0 to 255, not %r" % status)
    if len(result) > RESULT_MAX:
        raise FlurryError("BAD_CALL", "a result has at most %d bytes" % RESULT_MAX)
    _flush()
    _bad(_call().request("exit %d %d" % (status, len(result)), bytes(result)))


@_failing
def next_child(ticket, timeout=None):
    """The next child that has ended, each of them once; None when all have been told of. `timeout`: seconds."""
    call = _call()
    more = "" if timeout is None else " %d" % max(0, int(timeout * 1000))
    line = call.request("next " + _name(ticket) + more)
    if line == "end":
        return None
    found = re.fullmatch("child %s ([^ ]+) (exited|killed|died|failed) %s %s %s" % ((_NUMBER,) * 4), line)
    if not found or int(found[4]) > 255 or int(found[5]) > RESULT_MAX or int(found[6]) > FILES_MAX:
        _bad(line)
    result = call.bytes(int(found[5]))
    files = [_path(call.line()) for _ in range(int(found[6]))]
    return Child(int(found[1]), found[2], found[3], int(found[4]), result, files)


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
    return int(_ask("kill " + _name(ticket), _NUMBER)[0])


@_failing
def vm():
    """Who this VM is."""
    id, name, generation, parent = _ask("id", "%s ([^ ]+) %s ([^ ]+)" % (_NUMBER, _NUMBER))
    return Vm(int(id), name, int(generation), None if parent == "-" else parent)


def _flush():
    # What is printed before a fork is the parent's: each child would print it as well.
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _came_out(id):
    # One that takes part by a hook has been renewed there.
    if id > 0 and _connection is None:
        _renew(os.urandom(32))
    return id


def _name(ticket):
    ticket = ticket.ticket if isinstance(ticket, Forked) else ticket
    name = ticket.name if isinstance(ticket, Ticket) else ticket
    if re.fullmatch(_WORD, name):
        return name
    raise FlurryError("BAD_CALL", "%r is no name of a ticket or checkpoint" % name[:40])


def _path(line):
    found = re.fullmatch("file [0-9]+ (/.*)", line)
    return found[1] if found else _bad(line)


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
