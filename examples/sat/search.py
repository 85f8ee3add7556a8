"""Solves a formula with MiniSat: the VM forks where the search branches, the first child with a model wins, and the
others are killed. That no child has one proves that there is none."""

import itertools
import json
import os
import random
import subprocess
import sys

import flurry

BRANCHES = 3  # variables that are assumed: 2**3 children


def satisfiable():
    """Random clauses that a hidden assignment satisfies; hard enough to be worth a fork."""
    source = random.Random(11)
    variables = 230
    hidden = [source.random() < 0.5 for _ in range(variables)]
    clauses = []
    while len(clauses) < int(4.1 * variables):
        chosen = source.sample(range(variables), 3)
        clause = [(v + 1) * source.choice((1, -1)) for v in chosen]
        if any((literal > 0) == hidden[abs(literal) - 1] for literal in clause):
            clauses.append(clause)
    return variables, clauses


def unsatisfiable(holes=8):
    """One pigeon more than there are holes."""
    at = lambda pigeon, hole: pigeon * holes + hole + 1
    pigeons = range(holes + 1)
    clauses = [[at(pigeon, hole) for hole in range(holes)] for pigeon in pigeons]
    for hole in range(holes):
        clauses += [[-at(a, hole), -at(b, hole)] for a, b in itertools.combinations(pigeons, 2)]
    return holes * (holes + 1), clauses


def solve(variables, clauses, assumed=()):
    """A model as literals, or None. MiniSat exits with 10 or 20."""
    units = [[literal] for literal in assumed]
    text = "p cnf %d %d\n" % (variables, len(clauses) + len(units))
    text += "".join(" ".join(map(str, clause)) + " 0\n" for clause in clauses + units)
    open("/tmp/in.cnf", "w").write(text)
    code = subprocess.run(["minisat", "-verb=0", "/tmp/in.cnf", "/tmp/out"], stdout=subprocess.DEVNULL).returncode
    if code not in (10, 20):
        raise SystemExit("minisat has exited with %d" % code)
    return [int(word) for word in open("/tmp/out").read().split()[1:-1]] if code == 10 else None


def assumptions():
    return list(itertools.product(*[(v, -v) for v in range(1, BRANCHES + 1)]))


def forked(formula):
    branches = assumptions()
    me = flurry.fork(len(branches))
    if me.id > 0:
        for branch in branches[me.id - 1 :: me.granted]:
            model = solve(*formula, branch)
            if model:
                flurry.exit(0, model)
        flurry.exit(1)
    for child in flurry.ended(me.ticket):
        if child.state != "exited":
            raise SystemExit("child %d: %s" % (child.id, child.result.decode()))
        if child.status == 0:
            print("killed", flurry.kill(me.ticket), "that were not needed any more")
            return json.loads(child.result)
    return None


def told(name, formula, model):
    if model is None:
        return "%s: unsatisfiable" % name
    true = set(model)
    if not all(any(literal in true for literal in clause) for clause in formula[1]):
        raise SystemExit("%s: the model does not satisfy the formula" % name)
    return "%s: satisfiable, and the model holds" % name


if __name__ == "__main__":
    if "EXAMPLE_ITEMS" in os.environ:
        formulas = {"pigeons": unsatisfiable(6)}
    else:
        formulas = {"random clauses": satisfiable(), "pigeons": unsatisfiable()}
    how = sys.argv[1]
    if how == "prepare":
        solve(*unsatisfiable(3))
    elif how == "share":
        index, count = int(sys.argv[2]), int(sys.argv[3])
        for formula in formulas.values():
            print([solve(*formula, branch) is not None for branch in assumptions()[index::count]])
    else:
        for name, formula in formulas.items():
            model = forked(formula) if how == "fork" else solve(*formula)
            said = told(name, formula, model)
            print("result" if name == "pigeons" else "and", said)
