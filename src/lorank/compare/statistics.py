"""Paired comparisons over few seeds: what can be said, at what level, and how many seeds it would take to say more."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
from scipy import optimize, stats

Test = Literal["t", "wilcoxon"]
_DRAWS = 20_000


@dataclass(frozen=True)
class Difference:
    """A method against the baseline, over the seeds that both have.

    Attributes:
        pairs: how many seeds both have.
        mean: of `method - baseline`; NaN without pairs.
        std: sample standard deviation of the differences; NaN with fewer than two pairs.
        low: lower end of the bootstrap confidence interval of the mean.
        high: upper end.
        p: two-sided p-value of the test of a mean (t) or median (Wilcoxon) of 0; NaN where there is nothing to test.
        holm: the p-value after Holm's correction over all comparisons of the family; the claim is by this one.
        direction: 1 or -1, where the test sees the method: sign of the mean (t), or of the ranks' sum (Wilcoxon); or 0.
        seeds_needed: seeds at which a difference like this would be shown with a probability of 0.8, as the first claim of
            as large a family; None where it cannot be told (no difference seen, or more than 1,000).
        within: the largest difference that counts as none; None: equality is not tested.
        p_equal: p-value of two one-sided tests of a mean (t) or median (Wilcoxon) further away than that.
        holm_equal: the same after Holm's correction over all comparisons of the family; the claim is by this one.

    """

    pairs: int
    mean: float
    std: float
    low: float
    high: float
    p: float
    direction: int = 0
    holm: float = math.nan
    seeds_needed: int | None = None
    within: float | None = None
    p_equal: float = math.nan
    holm_equal: float = math.nan

    def equal(self, level: float) -> bool:
        """Whether the method is shown to be as good as the baseline, but for `within`."""
        return self.within is not None and self.holm_equal < level and abs(self.mean) < self.within

    def claim(self, level: float) -> int:
        """1 for better, -1 for worse, 0 for no claim: not below the level, or test and mean point to different sides."""
        return self.direction if self.holm < level and self.direction * self.mean > 0 else 0


def paired_differences(method: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> np.ndarray:
    """`method - baseline` for every seed that both have a finite value for, in the order of the seeds: `(pairs,)` float64."""
    differences = []
    for seed in sorted(set(method) & set(baseline)):
        one, other = method[seed], baseline[seed]
        if one is not None and other is not None and math.isfinite(one) and math.isfinite(other):
            differences.append(one - other)
    return np.array(differences, dtype=np.float64)


def compare(
    differences: np.ndarray, *, level: float = 0.05, test: Test = "t", within: float | None = None, seed: int = 0
) -> Difference:
    """Summarise paired differences: mean, spread, bootstrap interval, tests.

    Args:
        differences: `(pairs,)`.
        level: 1 - confidence of the interval.
        test: "t", the paired t-test; or "wilcoxon", exact where there are no ties. With fewer than six pairs the latter
            cannot come below 0.05.
        within: the largest difference that counts as none; None: equality is not tested.
        seed: of the bootstrap.

    """
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    std = float(differences.std(ddof=1)) if count > 1 else math.nan
    low, high = bootstrap_interval(differences, level=level, seed=seed)
    found = Difference(count, mean, std, low, high, p_value(differences, test), _direction(differences, test))
    return found if within is None else replace(found, within=within, p_equal=p_equal(differences, within, test))


def bootstrap_interval(differences: np.ndarray, *, level: float = 0.05, seed: int = 0) -> tuple[float, float]:
    """Expanded percentile bootstrap interval of the mean.

    Percentile intervals are too narrow for few pairs: the spread of resamples is that of a sample with n in place of n - 1, and
    normal in place of t. The percentiles are moved out by both, to `Φ(-sqrt(n / (n - 1)) t_{level/2, n-1})` (Hesterberg, "What
    teachers should know about the bootstrap", 2015, section 5.3). Still, no interval of resamples leaves the range of the sample:
    with n pairs it cannot cover more than `1 - 2^(1 - n)`, 75 % at three seeds, 94 % at five. Claims are made by tests.

    Returns:
        Lower and upper end; NaN with fewer than two differences.

    """
    count = len(differences)
    if count < 2:
        return math.nan, math.nan
    wanted = stats.norm.cdf(-math.sqrt(count / (count - 1)) * stats.t.ppf(1 - level / 2, count - 1))
    drawn = np.random.default_rng(seed).integers(0, count, (_DRAWS, count))
    means = differences[drawn].mean(1)
    low, high = np.quantile(means, [wanted, 1 - wanted])
    return float(low), float(high)


def p_value(differences: np.ndarray, test: Test = "t") -> float:
    """Two-sided p-value of paired differences; NaN with fewer than two, 1 where all are 0.

    "t" is the paired t-test. Differences that are all the same number other than 0 have no spread to test by (metrics of few
    examples do that): they get the sign test's `2 / 2^n`. "wilcoxon" is the signed-rank test, exact where there are no ties.
    """
    if len(differences) < 2:
        return math.nan
    if not differences.any():
        return 1.0
    if test == "wilcoxon":
        return float(stats.wilcoxon(differences).pvalue)
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return float(2.0 ** (1 - len(differences)))
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def p_equal(differences: np.ndarray, within: float, test: Test = "t") -> float:
    """p-value of equality within a bound, by two one-sided tests: the larger of "not above -within" and "not below +within".

    Equality is shown where both are refuted (Schuirmann, 1987): at level 0.05, where the 90 % interval of the t-test lies inside
    of the bounds. NaN with fewer than two differences. Differences that are all the same number have no spread to test by: inside
    of the bounds they get the one-sided sign test's `1 / 2^n`.
    """
    if len(differences) < 2:
        return math.nan
    if np.ptp(differences) <= 1e-12 * np.abs(differences).max():
        return float(2.0 ** -len(differences)) if abs(differences[0]) < within else 1.0
    one_sided: Any = stats.wilcoxon if test == "wilcoxon" else partial(stats.ttest_1samp, popmean=0.0)
    above = one_sided(differences + within, alternative="greater").pvalue
    below = one_sided(differences - within, alternative="less").pvalue
    return float(max(above, below))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: with these, the chance of any false claim in the family is at most the level.

    NaN (nothing to test) stays NaN and does not count as a comparison.
    """
    known = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for number, (p, k) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - number) * p))
        corrected[k] = largest
    return corrected


def corrected(differences: Sequence[Difference], *, level: float = 0.05, test: Test = "t") -> list[Difference]:
    """The same differences with Holm's correction over all of them, and the seeds that each would need on its own account.

    Holm's first claim has to stay below `level / m` with m comparisons, so the seeds are counted at that level: what is claimed
    after others needs fewer. The Wilcoxon test's number is an approximation; where the test has just failed to show a difference,
    it is more than the seeds that there were. Claims of equality are a family of their own.
    """
    family = sum(not math.isnan(one.p) for one in differences)
    with_holm = []
    both = zip(differences, holm([d.p for d in differences]), holm([d.p_equal for d in differences]), strict=True)
    for one, p, equal in both:
        needed = seeds_needed(one.mean, one.std, level / max(1, family), test=test)
        if needed is not None and not p < level:
            needed = max(needed, one.pairs + 1)
        with_holm.append(replace(one, holm=p, holm_equal=equal, seeds_needed=needed))
    return with_holm


def _direction(differences: np.ndarray, test: Test) -> int:
    if not differences.any():
        return 0
    sum_of = np.sign(differences) * stats.rankdata(np.abs(differences)) if test == "wilcoxon" else differences
    return int(np.sign(sum_of.sum()))


def seeds_needed(mean: float, std: float, level: float = 0.05, power: float = 0.8, test: Test = "t") -> int | None:
    """Smallest number of pairs at which a paired test shows a true difference of `mean` with spread `std` with this power.

    For "wilcoxon" this is the t-test's number (for normal differences it needs about 5 % more), but no less than what it takes
    to come below the level at all: `2^(1 - n)` is its smallest p-value.
    """
    if not (math.isfinite(mean) and math.isfinite(std)) or mean == 0:
        return None
    if std <= 1e-12 * abs(mean):  # the sign test of `p_value`
        return _least(level)
    effect = abs(mean) / std
    for count in range(_least(level) if test == "wilcoxon" else 2, 1001):
        threshold = stats.t.ppf(1 - level / 2, count - 1)
        if stats.nct.sf(threshold, count - 1, effect * math.sqrt(count)) >= power:
            return count
    return None


def _least(level: float) -> int:
    """Pairs at which `2^(1 - n)`, the smallest p-value of signs and signed ranks, is below the level."""
    return 2 + math.floor(math.log2(1 / level))


def least_shown(seeds: int, level: float, power: float = 0.8, test: Test = "t") -> float:
    """Smallest mean difference, in standard deviations of the differences between seeds, that so many seeds probably show.

    For "wilcoxon" this is the t-test's number, and infinity where its smallest p-value, `2^(1 - n)`, is not below the level.

    Args:
        seeds: pairs, at least 2; infinity with fewer.
        level: that the test has to stay below.
        power: probability of showing it.
        test: "t" or "wilcoxon".

    """
    if seeds < (_least(level) if test == "wilcoxon" else 2):
        return math.inf
    threshold = float(stats.t.ppf(1 - level / 2, seeds - 1))
    if threshold > 1e4:  # no difference of two runs is that regular, and the noncentral t is not computed well there
        return math.inf

    def missing(effect: float) -> float:
        return power - float(stats.nct.sf(threshold, seeds - 1, effect * math.sqrt(seeds)))

    return float(optimize.brentq(missing, 0.0, 10 * threshold))
