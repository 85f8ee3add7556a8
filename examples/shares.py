"""How the examples divide their work: over forked children, in one VM, or a share in a VM of its own.

    python3 EXAMPLE.py fork N       forks N children, each of which does a share
    python3 EXAMPLE.py alone        does all of it here
    python3 EXAMPLE.py share I N    does share I of N here: what a VM that was booted for it would do

With EXAMPLE_ITEMS in the environment there are so many items of work, to try it quickly.

Each prints what came out, and at last `result HASH`, which is the same however the work was divided.
"""

import hashlib
import json
import os
import sys

import flurry


def main(work, items, combine):
    """work(item) -> something that JSON can hold; combine(list of those, in the order of items) -> text."""
    items = items[: int(os.environ.get("EXAMPLE_ITEMS", len(items)))]
    how = sys.argv[1:2]
    if how == ["share"]:
        index, count = int(sys.argv[2]), int(sys.argv[3])
        done = [work(item) for item in items[index::count]]
        print("did", len(done), "of", len(items))
        return
    if how == ["fork"]:
        results = forked(work, items, int(sys.argv[2]))
    elif how == ["alone"]:
        results = [work(item) for item in items]
    else:
        raise SystemExit(__doc__)
    text = combine(results)
    print(text)
    print("result", hashlib.sha1(text.encode()).hexdigest())


def forked(work, items, children):
    me = flurry.fork(children)
    if me.id > 0:
        share = items[me.id - 1 :: me.granted]
        flurry.exit(0, [work(item) for item in share])
    results = [None] * len(items)
    for child in flurry.ended(me.ticket):
        if child.state != "exited" or child.status != 0:
            raise SystemExit("child %d has not done its share: %s %s" % (child.id, child.state, child.result))
        results[child.id - 1 :: me.granted] = json.loads(child.result)
    return results
