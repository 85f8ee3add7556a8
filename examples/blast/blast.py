"""Searches protein sequences in a database with BLAST; the database is hot in the page cache of every child."""

import os
import random
import subprocess

from shares import main

PLACE = "/var/lib/examples"
DATABASE, QUERY_FILE = PLACE + "/proteins", PLACE + "/queries.fa"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
SEQUENCES, LENGTH, QUERIES = 2000, 300, 160


def make():
    """The database; and parts of sequences of it, each tenth letter changed, to be searched."""
    source = random.Random(20090401)
    proteins = ["".join(source.choices(LETTERS, k=LENGTH)) for _ in range(SEQUENCES)]
    changed = lambda text: "".join(source.choice(LETTERS) if source.random() < 0.1 else letter for letter in text)
    os.makedirs(PLACE, exist_ok=True)
    with open(QUERY_FILE, "w") as file:
        for number in source.sample(range(SEQUENCES), QUERIES):
            file.write(">query%d\n%s\n" % (number, changed(proteins[number][50:250])))
    fasta = "".join(">protein%d\n%s\n" % pair for pair in enumerate(proteins))
    subprocess.run(
        ["makeblastdb", "-in", "-", "-dbtype", "prot", "-title", "proteins", "-out", DATABASE],
        input=fasta.encode(), check=True, stdout=subprocess.DEVNULL,
    )


def queries():
    with open(QUERY_FILE) as file:
        return [">" + text for text in file.read().split(">")[1:]]


def work(share):
    """What blastp finds for each query, best first."""
    found = subprocess.run(
        ["blastp", "-db", DATABASE, "-outfmt", "6 qseqid sseqid pident length evalue bitscore", "-evalue", "1e-10"],
        input="".join(share).encode(), check=True, stdout=subprocess.PIPE,
    )
    lines = found.stdout.decode().splitlines()
    return [[line for line in lines if line.split()[0] == query.split()[0][1:]] for query in share]


def combine(results):
    for lines in results:
        if not lines or lines[0].split()[0][len("query") :] != lines[0].split()[1][len("protein") :]:
            raise SystemExit("a query was not found where it is from: %s" % lines)
    hits = [line for lines in results for line in lines]
    return "%s\n%d queries were found where they are from, in %d hits" % ("\n".join(hits), len(results), len(hits))


if __name__ == "__main__":
    main(work, queries, combine, make)
