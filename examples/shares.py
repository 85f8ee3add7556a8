"""How the examples divide their work: over forked children, in one VM, or a share in a VM of its own.

    python3 EXAMPLE.py prepare      makes what the work needs, and does an item of it, so that all of it is hot
    python3 EXAMPLE.py fork N       forks N children, each of which does a share
    python3 EXAMPLE.py alone        does all of it here
    python3 EXAMPLE.py share I N    makes what the work needs, and does share I of N: for a VM that was booted for it

With EXAMPLE_ITEMS in the environment there are so many items of work, to try it quickly.

`fork` and `alone` print what came out, and at last `result HASH`, which is the same however the work was divided. They
fail if it is not what it has to be.
"""

import hashlib
import json
import os
import sys

import flurry


def main(work, items, combine, make=lambda: None):
    """Does what the arguments say.

    work(list of items) -> as many results, which JSON can hold; items() -> all items; combine(list of results, in the
    order of items) -> text, or SystemExit where they are wrong; make() -> what items() and work() need.
    """
    how = sys.argv[1:2]
    if how == ["prepare"]:
        make()
        work(items()[:1])
    elif how == ["share"]:
        make()
        share = of(items())[int(sys.argv[2]) :: int(sys.argv[3])]
        print("did", len(work(share)), "items")
    elif how == ["fork"]:
        tell(combine(forked(work, of(items()), int(sys.argv[2]))))
    elif how == ["alone"]:
        tell(combine(work(of(items()))))
    else:
        raise SystemExit(__doc__)


def of(items):
    return items[: int(os.environ.get("EXAMPLE_ITEMS", len(items)))]


def tell(text):
    print(text)
    print("result", hashlib.sha1(text.encode()).hexdigest())


def forked(work, items, children):
    me = flurry.fork(children)
    if me.id > 0:
        flurry.exit(0, work(items[me.id - 1 :: me.granted]))
    results = [None] * len(items)
    for child in flurry.ended(me.ticket):
        if child.state != "exited" or child.status != 0:
            raise SystemExit("child %d has not done its share: %s %s" % (child.id, child.state, child.result))
        results[child.id - 1 :: me.granted] = json.loads(child.result)
    return results
