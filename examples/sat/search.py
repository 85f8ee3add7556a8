"""Solves formulas with MiniSat: the VM forks where the search branches, the first child with a model wins, and the
others are killed. That no child has one proves that there is none.

    python3 search.py prepare              runs the solver once, so that it is hot
    python3 search.py fork N [FORMULA]     divides the branches over N children
    python3 search.py alone [FORMULA]      runs one solver on the formula as it is
    python3 search.py share I N [FORMULA]  tries share I of N of the branches: for a VM that was booted for it

FORMULA: satisfiable or unsatisfiable; both by default. With EXAMPLE_ITEMS in the environment they are small. `fork` and
`alone` print `result FORMULA`, and fail if that is not what came out.
"""

import collections
import itertools
import json
import os
import random
import subprocess
import sys

import flurry

BRANCHES = 3  # variables that are assumed: 2**3 branches
# Variables, clauses per variable, seed. The large satisfiable one is the first with so many variables that takes one
# solver more than 60,000 conflicts; its ratio is that where formulas of three literals are hardest.
LARGE = {"satisfiable": (350, 4.25, 17), "unsatisfiable": (250, 4.5, 1)}
SMALL = {"satisfiable": (250, 4.2, 12), "unsatisfiable": (120, 5.5, 1)}


def formula(name):
    """Random clauses of three literals; for `satisfiable` of those that hold for a hidden assignment."""
    variables, ratio, seed = (SMALL if "EXAMPLE_ITEMS" in os.environ else LARGE)[name]
    source = random.Random(seed)
    hidden = [source.random() < 0.5 for _ in range(variables)]
    clauses = []
    while len(clauses) < int(ratio * variables):
        chosen = source.sample(range(variables), 3)
        clause = [(v + 1) * source.choice((1, -1)) for v in chosen]
        if name == "unsatisfiable" or any((literal > 0) == hidden[abs(literal) - 1] for literal in clause):
            clauses.append(clause)
    return variables, clauses


def branches(clauses):
    """All values of the variables that are in the most clauses, as literals."""
    uses = collections.Counter(abs(literal) for clause in clauses for literal in clause)
    most = sorted(uses, key=lambda variable: (-uses[variable], variable))[:BRANCHES]
    return list(itertools.product(*[(variable, -variable) for variable in most]))


def solve(variables, clauses, assumed=()):
    """A model as literals, or None. MiniSat exits with 10 or 20."""
    units = [[literal] for literal in assumed]
    text = "p cnf %d %d\n" % (variables, len(clauses) + len(units))
    text += "".join(" ".join(map(str, clause)) + " 0\n" for clause in clauses + units)
    with open("/tmp/in.cnf", "w") as file:
        file.write(text)
    code = subprocess.run(["minisat", "-verb=0", "/tmp/in.cnf", "/tmp/out"], stdout=subprocess.DEVNULL).returncode
    if code not in (10, 20):
        raise SystemExit("minisat has exited with %d" % code)
    with open("/tmp/out") as file:
        return [int(word) for word in file.read().split()[1:-1]] if code == 10 else None


def first_model(variables, clauses, share):
    """The model of the first of these branches that has one, or None."""
    return next(filter(None, (solve(variables, clauses, branch) for branch in share)), None)


def forked(variables, clauses, children):
    all = branches(clauses)
    me = flurry.fork(children)
    if me.id > 0:
        model = first_model(variables, clauses, all[me.id - 1 :: me.granted])
        flurry.exit(0 if model else 1, model)
    for child in flurry.ended(me.ticket):
        if child.state != "exited" or child.status > 1:
            raise SystemExit("child %d: %s %s" % (child.id, child.state, child.result.decode()))
        if child.status == 0:
            killed = flurry.kill(me.ticket)
            told = [loser.state for loser in flurry.join(me.ticket)].count("killed")
            if told != killed:
                raise SystemExit("%d were killed, and join has told of %d" % (killed, told))
            print("child %d has a model; killed %d of %d" % (child.id, killed, me.granted))
            return json.loads(child.result)
    return None


def check(name, clauses, model):
    if (model is not None) != (name == "satisfiable"):
        raise SystemExit("the %s formula has %s" % (name, "a model" if model else "no model"))
    true = set(model or ())
    if model and not all(any(literal in true for literal in clause) for clause in clauses):
        raise SystemExit("the model does not satisfy the formula")


def main(how, numbers, names):
    for name in names or LARGE:
        variables, clauses = formula(name)
        if how == "share":
            index, count = numbers
            model = first_model(variables, clauses, branches(clauses)[index::count])
            print("found" if model else "none", name)
            continue
        model = forked(variables, clauses, *numbers) if how == "fork" else solve(variables, clauses)
        check(name, clauses, model)
        # Or the children of the next fork would have it in their buffers, and print it, too.
        print("result", name, flush=True)


if __name__ == "__main__":
    counts = {"prepare": 0, "fork": 1, "alone": 0, "share": 2}
    how = sys.argv[1] if len(sys.argv) > 1 else ""
    if how not in counts:
        raise SystemExit(__doc__)
    if how == "prepare":
        solve(3, [[1, 2, 3], [-1, -2, -3]])
    else:
        count = counts[how]
        main(how, [int(word) for word in sys.argv[2 : 2 + count]], sys.argv[2 + count :])
