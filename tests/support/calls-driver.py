"""Makes fork calls as its arguments say, with a timer that interrupts all that waits: as calls-driver.c."""

import os
import signal
import sys

import flurry


def show(child):
    line = "%d %s %s %d %s" % (child.id, child.vm, child.state, child.status, child.result.hex())
    print("|".join([line] + [path.encode("utf-8", "surrogateescape").decode("latin1") for path in child.files]))


def call(verb, *args):
    if verb == "ticket":
        print(*flurry.request_ticket(int(args[0]), *(int(ms) / 1000 for ms in args[1:])))
    elif verb == "fork":
        me = flurry.fork(int(args[0]))
        print(me.id, me.ticket.name, me.granted)
    elif verb == "id":
        me = flurry.vm()
        print(me.id, me.vm, me.generation, me.parent or "-")
    elif verb == "checkpoint":
        id, name = flurry.checkpoint_parent()
        print(id, name or "-")
    elif verb == "process":
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            called(args[0])
            sys.stdout.flush()
            os._exit(0)
        os.waitpid(pid, 0)
    elif verb in ("clone", "create", "kill"):
        print({"clone": flurry.clone, "create": flurry.create_clones, "kill": flurry.kill}[verb](*args))
    elif verb == "next":
        child = flurry.next_child(args[0], *(int(ms) / 1000 for ms in args[1:]))
        print("end") if child is None else show(child)
    elif verb == "join":
        children = flurry.join(args[0])
        print("joined", len(children))
        for child in children:
            show(child)
    elif verb == "exit":
        result = args[1] if len(args) > 1 else b""
        flurry.exit(int(args[0]), b"x" * int(result[1:]) if result[:1] == "*" else result)


def called(line):
    try:
        call(*line.split(" "))
    except flurry.FlurryError as error:
        print("error", error.code)


sys.stdout.reconfigure(encoding="latin1")
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for line in sys.argv[1:]:
    called(line)
signal.setitimer(signal.ITIMER_REAL, 0)
