"""Test losses in pairs of examples and seeds: a difference with an uncertainty that has both in it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import optimize, stats

from lorank.compare.cells import BASELINE, Cell
from lorank.compare.statistics import holm
from lorank.errors import ComparisonError
from lorank.tasks.loss_file import LOSSES, read_losses

# Points of the integral over the unknown variance of seeds, dense where the variance is large.
_POINTS = (np.arange(2000) + 0.5) / 2000
_AT, _WEIGHTS = _POINTS**4, 4 * _POINTS**3 / 2000


@dataclass(frozen=True)
class MeanSquares:
    """The two-way decomposition of differences `(seeds, examples)`.

    Attributes:
        seeds: number of seeds S.
        examples: number of examples N.
        between_seeds: mean square of the seeds' means: `N σ_seed² + σ²` is what it estimates.
        between_examples: mean square of the examples' means: `S σ_example² + σ²`.
        rest: mean square of what neither explains: `σ²`.

    """

    seeds: int
    examples: int
    between_seeds: float
    between_examples: float
    rest: float

    @classmethod
    def of(cls, differences: np.ndarray) -> "MeanSquares":
        """From at least two seeds and two examples."""
        seeds, examples = differences.shape
        mean, of_seed, of_example = differences.mean(), differences.mean(1), differences.mean(0)
        rest = differences - of_seed[:, None] - of_example[None, :] + mean
        return cls(
            seeds,
            examples,
            float(examples * of_seed.var(ddof=1)),
            float(seeds * of_example.var(ddof=1)),
            float((rest**2).sum() / ((seeds - 1) * (examples - 1))),
        )

    @property
    def variances(self) -> tuple[float, float, float]:
        """Parts of the variance of the mean that are due to seeds, to examples, and to both; none below 0."""
        cells = self.seeds * self.examples
        parts = (self.between_seeds - self.rest, self.between_examples - self.rest, self.rest)
        of_seeds, of_examples, both = (max(0.0, part) / cells for part in parts)
        return of_seeds, of_examples, both

    def p_value(self, distance: float) -> float:
        """Two-sided p-value of a true mean that is `distance` away from the mean that was seen.

        The mean has the variance `(A + B - C) / (S N)`, A, B and C being what the three mean squares estimate. Few seeds say
        little about A, so it is integrated over: `A = between_seeds (S - 1) / χ²_{S-1}`, but at least C. Without a part of the
        examples this is the paired t-test over seeds, without a part of the seeds that over examples; between them it is the
        solution of Behrens and Fisher, which keeps the level where Satterthwaite's degrees of freedom do not.
        """
        unknown = self.between_seeds * (self.seeds - 1) / stats.chi2.ppf(_AT, self.seeds - 1)
        variance = (np.maximum(unknown, self.rest) - self.rest + self.between_examples) / (self.seeds * self.examples)
        tails = 2 * stats.t.sf(distance / np.sqrt(variance), self.examples - 1)
        return float(min(1.0, tails @ _WEIGHTS))

    def half_width(self, level: float) -> float:
        """Of the interval of all means whose p-value is not below the level."""
        beyond = math.sqrt(sum(self.variances))
        while self.p_value(beyond) > level:
            beyond *= 4
        return float(optimize.brentq(lambda distance: self.p_value(distance) - level, 0.0, beyond))


@dataclass(frozen=True)
class LossDifference:
    """The test loss of a method against that of uniform LoRA, over seeds and examples that both have.

    Attributes:
        seeds: how many seeds both have losses for.
        examples: of the test part.
        mean: of `method - baseline`, each example weighing the same; below 0 the method is better. NaN without seeds.
        low: lower end of the interval of the mean.
        high: upper end.
        p: two-sided p-value of a mean of 0, for other seeds and other examples; NaN with fewer than two of either.
        holm: the same after Holm's correction over all such differences of the grid.
        standard_error: of the mean, by the two-way decomposition.
        from_seeds: its part that more seeds would make smaller.
        from_examples: its part that more test examples would make smaller.

    """

    seeds: int
    examples: int
    mean: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    holm: float = math.nan
    standard_error: float = math.nan
    from_seeds: float = math.nan
    from_examples: float = math.nan

    def claim(self, level: float) -> int:
        """1 where the loss is shown to be lower, -1 where it is shown to be higher, 0 for no claim."""
        return int(-np.sign(self.mean)) if self.holm < level else 0


def compare_losses(differences: np.ndarray, level: float = 0.05) -> LossDifference:
    """Summarise differences of losses, `(seeds, examples)`: mean, interval and test for other seeds and other examples.

    Args:
        differences: `method - baseline` of each example with each seed.
        level: 1 - confidence of the interval.

    """
    seeds, examples = differences.shape
    mean = float(differences.mean()) if differences.size else math.nan
    found = LossDifference(seeds, examples, mean)
    if seeds < 2 or examples < 2:
        return found
    if np.ptp(differences) <= 1e-12 * max(1e-300, np.abs(differences).max()):  # no spread: as `p_value` of seeds has it
        return replace(found, low=mean, high=mean, p=2.0 ** (1 - seeds) if mean else 1.0, standard_error=0.0)
    squares = MeanSquares.of(differences)
    half, variances = squares.half_width(level), squares.variances
    return replace(
        found,
        low=mean - half,
        high=mean + half,
        p=squares.p_value(abs(mean)),
        standard_error=math.sqrt(sum(variances)),
        from_seeds=math.sqrt(variances[0]),
        from_examples=math.sqrt(variances[1]),
    )


def read_cell_losses(cells: Sequence[Cell], folder: Path) -> dict[Cell, np.ndarray]:
    """Losses `(examples,)` of the cells that have kept them: those of earlier versions have not.

    Args:
        cells: that are done.
        folder: of the grid.

    Raises:
        DataError: a file that was damaged.

    """
    files = {cell: folder / "cells" / cell.folder / LOSSES for cell in cells}
    return {cell: read_losses(path) for cell, path in files.items() if path.is_file()}


def loss_differences(
    losses: Mapping[Cell, np.ndarray], level: float = 0.05
) -> dict[tuple[str, str, str], LossDifference]:
    """(task, budget, method) -> its losses against those of uniform LoRA, in pairs of seeds and examples.

    Holm's correction is over all of them: they are a family of their own. Seeds with a loss that is not finite are left out.

    Args:
        losses: cell -> loss of each test example `(examples,)`, in the same order for all cells of a task.
        level: 1 - confidence of the intervals.

    Raises:
        ComparisonError: cells of one task with different numbers of examples.

    """
    pairs: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for cell, mine in losses.items():
        theirs = losses.get(replace(cell, method=BASELINE))
        if cell.method == BASELINE or theirs is None:
            continue
        if mine.shape != theirs.shape:
            raise ComparisonError(
                f"{cell.folder} has losses of {len(mine)} test examples, uniform LoRA of {len(theirs)}; remove the folder of the "
                "one that is wrong and run the grid again"
            )
        of_method = pairs.setdefault((cell.task, cell.budget, cell.method), [])
        if np.isfinite(mine).all() and np.isfinite(theirs).all():
            of_method.append(mine - theirs)
    found = {key: compare_losses(np.stack(one), level) for key, one in pairs.items() if one}
    right = holm([one.p for one in found.values()])
    return {key: replace(one, holm=p) for (key, one), p in zip(found.items(), right, strict=True)}
