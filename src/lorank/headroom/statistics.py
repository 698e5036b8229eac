"""From losses of plans, by seed and example, to the gain of a chosen plan over uniform ranks, with its uncertainty.

Arrays of losses are `(plans, seeds, examples)` float64; the first plan is uniform ranks.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import special


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and examples, both of which are random.

    Attributes:
        mean: of all seeds and examples.
        standard_error: of the mean, for new seeds and new examples.
        degrees: degrees of freedom of the standard error (Satterthwaite).
        of_seeds: part of `standard_error ** 2` that falls with the number of seeds, times that number.
        of_examples: the part that stays, however many seeds there are.
        seeds: how many there were.

    """

    mean: float
    standard_error: float
    degrees: float
    of_seeds: float
    of_examples: float
    seeds: int

    def interval(self, level: float) -> tuple[float, float]:
        """Lower and upper bound; each is wrong with probability `level`."""
        half = self.half_width(level)
        return self.mean - half, self.mean + half

    def half_width(self, level: float) -> float:
        """Distance from the mean to a bound that is wrong with probability `level`."""
        return float(special.stdtrit(self.degrees, 1 - level)) * self.standard_error

    def with_seeds(self, count: int) -> "Estimate":
        """What the same mean and the same spread would give with another number of seeds."""
        by_seed = self.of_seeds / count
        variance = by_seed + self.of_examples
        share = by_seed / variance if variance > 0 else 1.0
        degrees = (count - 1) / max(share, 1e-3) ** 2
        return Estimate(self.mean, math.sqrt(variance), degrees, self.of_seeds, self.of_examples, count)


@dataclass(frozen=True)
class Spread:
    """Two-way analysis of variance of mean losses over plans and seeds.

    Attributes:
        plans: standard deviation of the plans' expected losses.
        seeds: standard deviation that a seed gives to all plans alike.
        rest: standard deviation that is left: what a seed gives to one plan alone.
        f: ratio of mean squares of plans and rest. It is large also where plans are only worse than uniform ranks.
        p: its p-value.

    """

    plans: float
    seeds: float
    rest: float
    f: float
    p: float


def crossed_mean(values: np.ndarray) -> Estimate:
    """Mean of `(seeds, examples)` where seeds and examples are random and crossed.

    The variance of the mean is that of a two-way random layout: of the seeds' means, plus of the examples' means, less what both
    count twice. It is never taken to be less than either of the two.

    Args:
        values: `(seeds, examples)` float64, at least two of each.

    """
    seeds, examples = values.shape
    by_seed, by_example = values.mean(1), values.mean(0)
    mean = float(values.mean())
    rest = values - by_seed[:, None] - by_example[None, :] + mean
    of_seeds = float(by_seed.var(ddof=1)) / seeds
    of_examples = float(by_example.var(ddof=1)) / examples
    degrees_of_rest = (seeds - 1) * (examples - 1)
    of_rest = float((rest**2).sum()) / degrees_of_rest / (seeds * examples)
    variance = max(of_seeds + of_examples - of_rest, of_seeds, of_examples)
    parts = of_seeds**2 / (seeds - 1) + of_examples**2 / (examples - 1) + of_rest**2 / degrees_of_rest
    # Not fewer than the seeds have alone: a variance of the seeds that is small by chance must not look well known.
    degrees = variance**2 / parts if parts > 0 else seeds - 1.0
    stays = max(0.0, of_examples - of_rest)
    return Estimate(mean, math.sqrt(variance), max(1.0, degrees), (variance - stays) * seeds, stays, seeds)


def chosen_plans(losses: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Which plan is best on each seed, of all but the uniform one, on the examples of one half.

    Args:
        losses: `(plans, seeds, examples)`, uniform ranks first.
        half: `(examples,)` bool.

    Returns:
        `(seeds,)` indices of plans, from 1.

    """
    return 1 + losses[1:, :, half].mean(2).argmin(0)


def cross_fitted_gains(losses: np.ndarray, halves: np.ndarray) -> np.ndarray:
    """Gain over uniform ranks of plans that were chosen on other seeds and on other examples.

    The plan of seed s and one half of the examples is measured on every other seed and on the other half only. So what is
    measured shares neither training nor examples with the choice, and its mean is 0 where no plan differs.

    Args:
        losses: `(plans, seeds, examples)`, uniform ranks first.
        halves: `(examples,)` bool: which half an example is in.

    Returns:
        `(seeds, examples)`: loss of uniform ranks minus that of the chosen plans, mean over the other seeds that chose.

    """
    _, seeds, examples = losses.shape
    gains = np.zeros((seeds, examples))
    for half in (halves, ~halves):
        chosen = chosen_plans(losses, ~half)
        for seed in range(seeds):
            others = [chosen[other] for other in range(seeds) if other != seed]
            gains[seed, half] = losses[0, seed, half] - losses[others, seed][:, half].mean(0)
    return gains


def spread_of(means: np.ndarray) -> Spread:
    """Two-way analysis of variance without replicates.

    Args:
        means: `(plans, seeds)` mean losses, at least two of each.

    """
    plans, seeds = means.shape
    rest = means - means.mean(1, keepdims=True) - means.mean(0, keepdims=True) + means.mean()
    of_rest = float((rest**2).sum()) / ((plans - 1) * (seeds - 1))
    of_plans, of_seeds = seeds * float(means.mean(1).var(ddof=1)), plans * float(means.mean(0).var(ddof=1))
    f = of_plans / of_rest if of_rest > 0 else math.inf if of_plans > 0 else 1.0
    return Spread(
        plans=math.sqrt(max(0.0, of_plans - of_rest) / seeds),
        seeds=math.sqrt(max(0.0, of_seeds - of_rest) / plans),
        rest=math.sqrt(of_rest),
        f=f,
        p=float(special.fdtrc(plans - 1, (plans - 1) * (seeds - 1), f)),
    )


def bound_of_best(losses: np.ndarray, level: float) -> float:
    """Upper bound of the gain of the best plan, whichever it is; wrong with probability `level`.

    The largest of the plans' own upper bounds, each at `level / plans`. The spread of a plan over seeds is taken to be that of
    the analysis of variance, the same for all plans, because a few seeds say little about one plan's own.

    Args:
        losses: `(plans, seeds, examples)`, uniform ranks first.
        level: between 0 and 0.5.

    """
    plans, seeds, _ = losses.shape
    degrees = (plans - 1) * (seeds - 1)
    by_seed = 2 * spread_of(losses.mean(2)).rest ** 2 / seeds
    bounds = []
    for plan in range(1, plans):
        own = crossed_mean(losses[0] - losses[plan])
        variance = by_seed + own.of_examples
        of_variance = by_seed**2 / degrees
        known = variance**2 / of_variance if of_variance > 0 else degrees
        bounds.append(own.mean + float(special.stdtrit(known, 1 - level / (plans - 1))) * math.sqrt(variance))
    return max(bounds)
