"""Searches some of the globins of HMMER's tutorial in all of them with phmmer: which are how near to which."""

import subprocess

from shares import main

ALL = "/usr/share/doc/hmmer/examples/tutorial/globins45.fa"
QUERIES = 20


def globins():
    """The first of them, as FASTA."""
    with open(ALL) as file:
        return [">" + text for text in file.read().split(">")[1 : QUERIES + 1]]


def work(share):
    """For each of them `QUERY FOUND BITS`, best first."""
    found = subprocess.run(
        ["phmmer", "--noali", "-o", "/dev/null", "--tblout", "/dev/stdout", "--cpu", "0", "-", ALL],
        input="".join(share).encode(), check=True, stdout=subprocess.PIPE,
    )
    rows = [line.split() for line in found.stdout.decode().splitlines() if line and line[0] != "#"]
    return [
        ["%s %s %s" % (row[2], row[0], row[5]) for row in rows if row[2] == query.split()[0][1:]] for query in share
    ]


def combine(results):
    for lines in results:
        if not lines or lines[0].split()[0] != lines[0].split()[1]:
            raise SystemExit("a globin is not nearest to itself: %s" % lines)
    pairs = [line for lines in results for line in lines]
    return "%s\n%d globins are nearest to themselves, and in %d pairs" % ("\n".join(pairs), len(results), len(pairs))


if __name__ == "__main__":
    main(work, globins, combine)
