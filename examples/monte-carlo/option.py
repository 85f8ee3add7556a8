"""Prices a European call by simulation, and holds it against the closed formula of Black and Scholes (1973)."""

import math
import random

from shares import main

SPOT, STRIKE, RATE, VOLATILITY, YEARS = 100.0, 105.0, 0.03, 0.2, 1.0
PATHS, PARTS = 50_000, 16  # each


def work(parts):
    return [simulated() for _ in parts]


def simulated():
    """Sum and sum of squares of discounted payoffs. The generator is the child's own: no two parts are alike."""
    drift = (RATE - VOLATILITY**2 / 2) * YEARS
    spread = VOLATILITY * math.sqrt(YEARS)
    discount = math.exp(-RATE * YEARS)
    total = squares = 0.0
    for _ in range(PATHS):
        payoff = discount * max(0.0, SPOT * math.exp(drift + spread * random.gauss(0.0, 1.0)) - STRIKE)
        total += payoff
        squares += payoff * payoff
    return [total, squares]


def exact():
    d1 = (math.log(SPOT / STRIKE) + (RATE + VOLATILITY**2 / 2) * YEARS) / (VOLATILITY * math.sqrt(YEARS))
    d2 = d1 - VOLATILITY * math.sqrt(YEARS)
    normal = lambda x: (1 + math.erf(x / math.sqrt(2))) / 2
    return SPOT * normal(d1) - STRIKE * math.exp(-RATE * YEARS) * normal(d2)


def combine(results):
    paths = PATHS * len(results)
    if len({total for total, _ in results}) != len(results):
        raise SystemExit("two parts have drawn the same numbers")
    mean = sum(total for total, _ in results) / paths
    error = math.sqrt((sum(squares for _, squares in results) / paths - mean**2) / paths)
    told = "simulated %.4f, standard error %.4f, exact %.4f" % (mean, error, exact())
    # One in two million is further away.
    if abs(mean - exact()) > 5 * error:
        raise SystemExit("the price is wrong: " + told)
    print(told)
    return "the price of %d paths is within five standard errors of the exact one" % paths


if __name__ == "__main__":
    main(work, lambda: list(range(PARTS)), combine)
