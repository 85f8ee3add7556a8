"""Searches protein sequences in a database with BLAST; the database is hot in the page cache of every child."""

import os
import random
import subprocess
import sys

DATABASE = "/var/lib/examples/proteins"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SEQUENCES, LENGTH, QUERIES = 3000, 300, 16


def sequences():
    source = random.Random(20090401)
    return ["".join(source.choices(LETTERS, k=LENGTH)) for _ in range(SEQUENCES)]


def prepare():
    """In the parent: makes the database, and reads all of it once."""
    os.makedirs(os.path.dirname(DATABASE), exist_ok=True)
    fasta = "".join(">protein%d\n%s\n" % pair for pair in enumerate(sequences()))
    subprocess.run(
        ["makeblastdb", "-in", "-", "-dbtype", "prot", "-title", "proteins", "-out", DATABASE],
        input=fasta.encode(), check=True, stdout=subprocess.DEVNULL,
    )
    work(queries()[0])


def queries():
    """Parts of sequences of the database, each tenth letter changed."""
    source, all = random.Random(7), sequences()
    chosen = source.sample(range(SEQUENCES), QUERIES)
    changed = lambda text: "".join(source.choice(LETTERS) if source.random() < 0.1 else letter for letter in text)
    return [("query%d" % number, changed(all[number][50:250])) for number in chosen]


def work(query):
    found = subprocess.run(
        ["blastp", "-db", DATABASE, "-outfmt", "6 qseqid sseqid pident length evalue bitscore", "-evalue", "1e-10"],
        input=(">%s\n%s\n" % query).encode(), check=True, stdout=subprocess.PIPE,
    )
    return found.stdout.decode()


def combine(results):
    lines = "".join(results).splitlines()
    right = sum(1 for line in lines if line.split()[0][5:] == line.split()[1][7:])
    return "\n".join(sorted(lines)) + "\n%d hits, %d of %d queries found where they are from" % (
        len(lines), right, len(results),
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["prepare"]:
        prepare()
    else:
        from shares import main

        main(work, queries(), combine)
