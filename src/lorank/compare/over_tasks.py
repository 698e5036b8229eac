"""One line for each method over all tasks of a grid: what can be believed of a handful of tasks."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from lorank.compare.answer import Row
from lorank.compare.cells import BASELINE
from lorank.compare.statistics import Difference, Test, compare, corrected
from lorank.compare.words import UNIFORM, in_words

COLUMNS = ("method", "mean difference", "interval", "p (Holm)", "seeds", "above uniform", "mean rank", "tasks")


@dataclass(frozen=True)
class OverTasks:
    """A method over all tasks at one budget.

    The mean difference is that of the tasks' metrics as they are, as the averages that papers print. Differences in units of the
    spread between seeds would not depend on the metric, but a handful of seeds does not say how large that spread is, and it is 0
    where a method always gives the largest class. Tests and intervals are over seeds: they are about these tasks, and say nothing
    of other tasks. The rank needs no unit, and no test is made of it.

    Attributes:
        budget: as it was asked for.
        method: of `METHODS` or `CONTROLS`.
        tasks: names of the tasks on which both the method and uniform LoRA have a value.
        of: number of the grid's tasks.
        metrics: what these tasks are judged by.
        difference: mean over these tasks of the difference to uniform LoRA, in pairs of seeds that have a value on all of them;
            None for uniform LoRA.
        above: number of these tasks on which the mean is above uniform LoRA's.
        mean_rank: mean over the tasks of the method's place among all that have a value on every task, the best being 1; NaN
            where it has none on some task.

    """

    budget: str
    method: str
    tasks: tuple[str, ...]
    of: int
    metrics: tuple[str, ...]
    difference: Difference | None
    above: int
    mean_rank: float


def over_tasks(
    rows: Sequence[Row], *, level: float = 0.05, test: Test = "t", within: float | None = None
) -> list[OverTasks]:
    """One line for each budget and method; empty where the rows are of one task.

    Holm's correction is over these lines: they are a family of their own.

    Args:
        rows: of `answer`.
        level: of claims and intervals.
        test: "t" or "wilcoxon".
        within: the largest mean difference that counts as none; None: equality is not tested.

    """
    tasks = list(dict.fromkeys(row.task for row in rows))
    if len(tasks) < 2:
        return []
    found = []
    for budget in dict.fromkeys(row.budget for row in rows):
        of_budget = [row for row in rows if row.budget == budget]
        ranks = _mean_ranks(of_budget, len(tasks))
        uniform = {row.task: row for row in of_budget if row.method == BASELINE}
        for method in dict.fromkeys(row.method for row in of_budget):
            mine = [row for row in of_budget if row.method == method and row.known and uniform[row.task].known]
            pairs = [_paired(row.values, uniform[row.task].values) for row in mine]
            seeds = sorted(set.intersection(*map(set, pairs))) if pairs else []
            means = np.array([statistics.fmean(one[seed] for one in pairs) for seed in seeds])
            one = OverTasks(
                budget=budget,
                method=method,
                tasks=tuple(row.task for row in mine),
                of=len(tasks),
                metrics=tuple(dict.fromkeys(row.metric for row in mine)),
                difference=compare(means, level=level, test=test, within=within) if method != BASELINE else None,
                above=sum(row.mean > uniform[row.task].mean for row in mine),
                mean_rank=ranks.get(method, math.nan),
            )
            found.append(one)
    compared = [one for one in found if one.difference is not None]
    right = corrected([one.difference for one in compared if one.difference is not None], level=level, test=test)
    family = {id(one): difference for one, difference in zip(compared, right, strict=True)}
    return [replace(one, difference=family.get(id(one))) for one in found]


def _paired(method: Mapping[int, float | None], uniform: Mapping[int, float | None]) -> dict[int, float]:
    """Seed -> difference, where both have a value."""
    both = {seed: (mine, uniform.get(seed)) for seed, mine in method.items()}
    return {
        seed: mine - theirs
        for seed, (mine, theirs) in both.items()
        if mine is not None and theirs is not None and math.isfinite(mine - theirs)
    }


def _mean_ranks(rows: Sequence[Row], tasks: int) -> dict[str, float]:
    """Method -> mean place, of the methods that have a mean on every task; ties share their places."""
    means: dict[str, list[float]] = {}
    for row in rows:
        if not math.isnan(row.mean):
            means.setdefault(row.method, []).append(row.mean)
    whole = {method: of_tasks for method, of_tasks in means.items() if len(of_tasks) == tasks}
    if not whole:
        return {}
    places = rankdata([[-mean for mean in of_tasks] for of_tasks in whole.values()], axis=0).mean(1)
    return dict(zip(whole, map(float, places), strict=True))


def overall_sentence(one: OverTasks, asked: int, level: float = 0.05) -> str:
    """What can be said of a method over all tasks of the grid, in plain words."""
    where = f"mean of {len(one.tasks)} tasks, budget {one.budget}: {one.method}"
    difference = one.difference
    if difference is None:
        return f"{where} is what the others are compared with."
    size = f"{difference.mean:+.4f} (bootstrap interval {difference.low:+.4f} to {difference.high:+.4f})"
    return in_words(where, UNIFORM, difference, size, asked=asked, level=level)
