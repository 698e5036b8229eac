"""Named variants against the first one: differences of the mean over tasks, in points and relative to the first's mean."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lorank.compare.answer import Row
from lorank.compare.statistics import Difference, Test, compare, corrected, paired_differences
from lorank.compare.sweep.variants import Sweep, Variant
from lorank.compare.words import in_words


@dataclass(frozen=True)
class Change:
    """A variant against the first one, by the mean over all tasks.

    Attributes:
        variant: its name.
        means: seed -> mean of the tasks' metrics; None where one of them has no value.
        mean: over the seeds.
        std: sample standard deviation over the seeds; NaN with fewer than two.
        difference: to the first variant, in pairs of seeds; None for the first variant itself.
        relative: the difference as a share of the first variant's mean over the same seeds; NaN where that is not above 0.

    """

    variant: str
    means: Mapping[int, float | None]
    mean: float
    std: float
    difference: Difference | None = None
    relative: float = math.nan


def points(value: float) -> float:
    """A metric, or a difference of metrics, in points: 100 for 1."""
    return 100 * value


def relative_change(reference: float, value: float) -> float:
    """`(value - reference) / reference`: 84.62 and 81.47 give -0.0372. NaN where the reference is not above 0.

    I-LoRA's Table 3 prints this of the mean over its tasks, as its Δ.
    """
    return (value - reference) / reference if reference > 0 else math.nan


def changes(sweep: Sweep, rows: Sequence[Row], *, level: float = 0.05, test: Test = "t") -> list[Change]:
    """Named variants against the first one, in pairs of seeds; Holm's correction is over all of them.

    Args:
        sweep: with named variants.
        rows: of `answer`.
        level: of claims and intervals.
        test: "t" or "wilcoxon".

    """
    found = []
    for variant in sweep.variants:
        means = _means(sweep, variant, rows)
        known = [value for value in means.values() if value is not None]
        mean = statistics.fmean(known) if known else math.nan
        found.append(Change(variant.name, means, mean, statistics.stdev(known) if len(known) > 1 else math.nan))
    first, *others = found
    differences = [compare(paired_differences(one.means, first.means), level=level, test=test) for one in others]
    right = corrected(differences, level=level, test=test)
    return [first, *(_changed(first, one, difference) for one, difference in zip(others, right, strict=True))]


def _changed(first: Change, one: Change, difference: Difference) -> Change:
    pairs = [
        (theirs, mine)
        for seed, mine in one.means.items()
        if mine is not None and (theirs := first.means.get(seed)) is not None
    ]
    if not pairs:
        return replace(one, difference=difference)
    reference, value = (statistics.fmean(values) for values in zip(*pairs, strict=True))
    return replace(one, difference=difference, relative=relative_change(reference, value))


def _means(sweep: Sweep, variant: Variant, rows: Sequence[Row]) -> dict[int, float | None]:
    """Seed -> mean over the recipes of this variant."""
    tasks = [sweep.task(recipe, variant) for recipe in sweep.recipes]
    values = [row.values for row in rows if row.task in tasks]
    means: dict[int, float | None] = {}
    for seed in sweep.seeds:
        known = [value for one in values if (value := one.get(seed)) is not None and math.isfinite(value)]
        means[seed] = statistics.fmean(known) if len(known) == len(tasks) else None
    return means


def change_in_words(sweep: Sweep, one: Change, level: float = 0.05) -> str:
    """What can be said of a variant against the first one, in plain words."""
    first, over = sweep.variants[0].name, f"mean of {len(sweep.recipes)} tasks" if len(sweep.recipes) > 1 else "metric"
    if one.difference is None:
        return f"{one.variant} is what the others are compared with ({over} {one.mean:.4f})."
    low, high = points(one.difference.low), points(one.difference.high)
    size = f"{points(one.difference.mean):+.2f} points (bootstrap interval {low:+.2f} to {high:+.2f})"
    if not math.isnan(one.relative):
        size += f", {100 * one.relative:+.2f} % of its {over}"
    return in_words(one.variant, first, one.difference, size, asked=len(sweep.seeds), level=level)
