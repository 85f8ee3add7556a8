"""Searches each of the globins of HMMER's tutorial in all of them with phmmer: which are how near to which."""

import subprocess
import sys

ALL = "/usr/share/doc/hmmer/examples/tutorial/globins45.fa"
QUERIES = 20


def queries():
    """The first of them, as FASTA."""
    return [">" + text for text in open(ALL).read().split(">")[1 : QUERIES + 1]]


def work(query):
    found = subprocess.run(
        ["phmmer", "--noali", "-o", "/dev/null", "--tblout", "/dev/stdout", "--cpu", "0", "-", ALL],
        input=query.encode(), check=True, stdout=subprocess.PIPE,
    )
    rows = [line.split() for line in found.stdout.decode().splitlines() if line and line[0] != "#"]
    return ["%s %s %s" % (row[2], row[0], row[5]) for row in rows]


def combine(results):
    lines = [line for lines in results for line in lines]
    best = sum(1 for lines in results if lines and lines[0].split()[0] == lines[0].split()[1])
    return "\n".join(lines) + "\n%d pairs; %d of %d globins are nearest to themselves" % (len(lines), best, len(results))


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        work(queries()[0])
    else:
        from shares import main

        main(work, queries(), combine)
