"""Speaks to the host in its bare protocol, as CALLS.md has it: for what no binding would say."""

import os
import socket
import sys


class Call:
    def __init__(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect("/run/flurry/vm.sock")
        self.file = self.socket.makefile("rb", 0)

    def say(self, line, body=b""):
        self.socket.sendall(line.encode() + b"\n" + body)

    def answer(self):
        return self.file.readline().decode().rstrip("\n")

    def ask(self, line, body=b""):
        self.say(line, body)
        return self.answer()

    def words(self, line, body=b""):
        return self.ask(line, body).split(" ")

    def bytes(self, count):
        got = b""
        while len(got) < count:
            more = self.file.read(count - len(got))
            if not more:
                raise EOFError("the host has ended the call")
            got += more
        return got

    def next(self, ticket, more=""):
        """(index, state, status, result, files), or None at the end; a text is an error."""
        words = self.words("next " + ticket + more)
        if words[0] == "end":
            return None
        if words[0] != "child":
            return " ".join(words)
        result = self.bytes(int(words[5]))
        files = [self.answer().split(" ", 2) for _ in range(int(words[6]))]
        return int(words[1]), words[3], int(words[4]), result.decode(), [(int(f[1]), f[2]) for f in files]

    def join(self, ticket):
        ended = []
        while True:
            child = self.next(ticket)
            if child is None:
                return sorted(ended)
            ended.append(child)

    def exit(self, status, result=b""):
        if isinstance(result, str):
            result = result.encode()
        self.say("exit %d %d" % (status, len(result)), result)
        self.answer()
        raise SystemExit("the VM goes on after exit")


def say(*values):
    print(*values, flush=True)
