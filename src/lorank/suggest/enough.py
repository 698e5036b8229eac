"""The smallest budget that is shown to lose little against the largest."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class Difference:
    """Mean loss of a budget minus that of the largest, on the same examples and seeds.

    Attributes:
        mean: over seeds and examples.
        error: its standard error.
        upper: one-sided upper bound.

    """

    mean: float
    error: float
    upper: float


def difference(losses: np.ndarray, of_largest: np.ndarray, level: float = 0.05) -> Difference:
    """Compare two budgets, paired by seed and example.

    Seeds and examples are both samples: the variance of the mean is `var(means of seeds) / seeds + var(means of examples) /
    examples`, which counts what the two share twice and so errs on the careful side. The bound is Student's, with
    Satterthwaite's degrees of freedom.

    Args:
        losses: `(seeds, examples)`, two seeds at least; a budget with a loss that is not finite is never shown to be enough.
        of_largest: the same, of the largest budget.
        level: chance that the bound is too low.

    """
    apart = losses - of_largest
    if not np.isfinite(apart).all():
        return Difference(math.inf, math.inf, math.inf)
    seeds, examples = apart.shape
    by_seed = float(apart.mean(1).var(ddof=1)) / seeds
    by_example = float(apart.mean(0).var(ddof=1)) / examples
    error = math.sqrt(by_seed + by_example)
    mean = float(apart.mean())
    if error == 0:
        return Difference(mean, 0.0, mean)
    freedom = error**4 / (by_seed**2 / (seeds - 1) + by_example**2 / (examples - 1))
    return Difference(mean, error, mean + float(t.ppf(1 - level, freedom)) * error)


def smallest_enough(differences: Sequence[Difference], within: float) -> int:
    """Which budget is the smallest that is enough: it and all larger ones are shown to lose no more than `within`.

    Budgets are asked from the largest down, and the first that is not shown ends it. In this order the chance to call a budget
    enough that is not stays that of one bound, however many budgets there are.

    Args:
        differences: to the largest budget, in ascending order of budgets; the last is that of the largest to itself.
        within: loss that may be lost.

    """
    chosen = len(differences) - 1
    while chosen and differences[chosen - 1].upper <= within:
        chosen -= 1
    return chosen
