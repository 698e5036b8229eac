"""From the results of a grid to what can be said of each method."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from lorank.compare.cells import BASELINE, Cell, Measured
from lorank.compare.statistics import Difference, Test, compare, corrected, paired_differences
from lorank.errors import ComparisonError

# What methods are tested against beside uniform LoRA, in words.
AGAINST = {
    "shuffled": "its own plan, shuffled",
    "svd-truncate": "an adapter cut by singular values",
    "uniform-triplets": "triplets that end at the uniform rank",
}


@dataclass(frozen=True)
class Row:
    """One method on one task at one budget, over the seeds.

    Attributes:
        task: name of the recipe.
        budget: as it was asked for.
        method: of `METHODS` or `CONTROLS`.
        metric: what it is judged by.
        values: seed -> the metric; None where it is not defined.
        missing: seeds without a result.
        mean: of the values.
        std: sample standard deviation; NaN with fewer than two.
        difference: to uniform LoRA, in pairs of seeds; None for uniform LoRA itself.
        parameters: the least and the most that a cell had: a share of the units costs other parameters for each seed.
        steps: of the training, with those of what came before it.
        seconds: mean wall time of the training.
        before: mean wall time of what came before it.
        peak_bytes: mean peak memory.
        uncut: of what was cut after its training: mean of the metric before the cut; NaN for others.

    """

    task: str
    budget: str
    method: str
    metric: str
    values: Mapping[int, float | None]
    missing: tuple[int, ...]
    mean: float
    std: float
    difference: Difference | None
    parameters: tuple[int, int]
    steps: tuple[int, int]
    seconds: float
    before: float
    peak_bytes: float
    uncut: float = math.nan

    @property
    def known(self) -> list[float]:
        """The values that are numbers."""
        return _numbers(self.values)

    @property
    def asked(self) -> int:
        """Seeds of the grid, with and without a value."""
        return len(self.values) + len(self.missing)


@dataclass(frozen=True)
class Contrast:
    """A method against one of its own controls, over the seeds.

    Attributes:
        task: name of the recipe.
        budget: as it was asked for.
        method: whose plans the control shuffles, or does without.
        control: of `CONTROLS`.
        metric: what is judged by.
        difference: `method - control` in pairs of seeds.
        asked: seeds of the grid.

    """

    task: str
    budget: str
    method: str
    control: str
    metric: str
    difference: Difference
    asked: int


def answer(
    cells: list[Cell],
    results: Mapping[Cell, Measured],
    *,
    metrics: Mapping[str, str] | None = None,
    level: float = 0.05,
    test: Test = "t",
) -> list[Row]:
    """Summarise a grid: one row for each task, budget and method, differences to uniform LoRA in pairs of seeds.

    Holm's correction is over all differences of the grid together, so the chance that any claim in it is false is at most
    `level`, where no method differs from uniform LoRA.

    Args:
        cells: of the grid.
        results: of those that are done.
        metrics: task -> what it is judged by; the first of its metrics where it is not said.
        level: of claims and intervals.
        test: "t" or "wilcoxon".

    Raises:
        ComparisonError: a level or metric that there is not, or cells of one seed that saw other data or other tokens.

    """
    if not 0 < level < 1:
        raise ComparisonError(f"level is {level}; allowed: a probability between 0 and 1, for example 0.05")
    check_equal(results)
    rows = []
    for task, budget, method in dict.fromkeys((cell.task, cell.budget, cell.method) for cell in cells):
        mine = {c.seed: results.get(c) for c in cells if (c.task, c.budget, c.method) == (task, budget, method)}
        theirs = {c.seed: results.get(c) for c in cells if (c.task, c.budget, c.method) == (task, budget, BASELINE)}
        metric = _metric(task, (metrics or {}).get(task), results)
        values = {seed: one.metrics[metric] for seed, one in mine.items() if one is not None}
        baseline = {seed: one.metrics[metric] for seed, one in theirs.items() if one is not None}
        difference = (
            None if method == BASELINE else compare(paired_differences(values, baseline), level=level, test=test)
        )
        rows.append(_row(task, budget, method, metric, values, mine, difference))
    compared = [row for row in rows if row.difference is not None]
    family = corrected([row.difference for row in compared if row.difference is not None], level=level, test=test)
    right = {id(row): difference for row, difference in zip(compared, family, strict=True)}
    return [replace(row, difference=right.get(id(row))) for row in rows]


def contrasts(
    rows: Sequence[Row], controlled: Mapping[tuple[str, str], str], *, level: float = 0.05, test: Test = "t"
) -> list[Contrast]:
    """Methods against their controls: is it the plan that does it?

    These are a family of their own: Holm's correction is over them, and not over the differences to uniform LoRA.

    Args:
        rows: of `answer`.
        controlled: (task, control) -> the method that is tested against it.
        level: of claims and intervals.
        test: "t" or "wilcoxon".

    """
    uncorrected = []
    for row, mine in product(rows, rows):
        tested = (mine.task, mine.budget, mine.method) == (row.task, row.budget, controlled.get((row.task, row.method)))
        if tested and row.method in AGAINST:
            difference = compare(paired_differences(mine.values, row.values), level=level, test=test)
            uncorrected.append(
                Contrast(row.task, row.budget, mine.method, row.method, row.metric, difference, row.asked)
            )
    right = corrected([one.difference for one in uncorrected], level=level, test=test)
    return [replace(one, difference=difference) for one, difference in zip(uncorrected, right, strict=True)]


def _numbers(values: Mapping[int, float | None]) -> list[float]:
    return [value for value in values.values() if value is not None and math.isfinite(value)]


def _row(
    task: str,
    budget: str,
    method: str,
    metric: str,
    values: Mapping[int, float | None],
    cells: Mapping[int, Measured | None],
    difference: Difference | None,
) -> Row:
    done = [one for one in cells.values() if one is not None]
    spent = [one.parameters for one in done] or [0]
    uncut = [value for one in done if one.uncut is not None and (value := one.uncut[metric]) is not None]
    known = _numbers(values)
    return Row(
        task=task,
        budget=budget,
        method=method,
        metric=metric,
        values=values,
        missing=tuple(seed for seed, one in cells.items() if one is None),
        mean=statistics.fmean(known) if known else math.nan,
        std=statistics.stdev(known) if len(known) > 1 else math.nan,
        difference=difference,
        parameters=(min(spent), max(spent)),
        steps=(max((one.steps for one in done), default=0), max((one.steps_before for one in done), default=0)),
        seconds=statistics.fmean(one.seconds for one in done) if done else math.nan,
        before=statistics.fmean(one.before for one in done) if done else math.nan,
        peak_bytes=statistics.fmean(one.peak_bytes for one in done) if done else math.nan,
        uncut=statistics.fmean(uncut) if uncut else math.nan,
    )


def check_equal(results: Mapping[Cell, Measured]) -> None:
    """Refuse to compare what is not equal: data and scale of adapters within a task, training tokens and steps within a seed.

    Raises:
        ComparisonError: names the two cells.

    """
    first: dict[tuple[str, str, int], tuple[Cell, Measured]] = {}
    hashes: dict[str, tuple[Cell, Mapping[str, str]]] = {}
    for cell, one in results.items():
        seen_cell, seen = hashes.setdefault(cell.task, (cell, one.data))
        if one.data != seen:
            raise ComparisonError(
                f"{cell.folder} and {seen_cell.folder} differ in data: it changed while the grid was run"
            )
        if cell.method == "equal-compute":  # shorter by what its plan cost
            one = replace(one, steps=one.steps + one.steps_before)
        other_cell, other = first.setdefault((cell.task, cell.budget, cell.seed), (cell, one))
        for what in ("tokens", "steps"):
            if what == "tokens" and "equal-compute" in (cell.method, other_cell.method):
                continue
            if getattr(one, what) != getattr(other, what):
                raise ComparisonError(
                    f"{cell.folder} and {other_cell.folder} differ in {what} ({getattr(one, what)} and {getattr(other, what)}) "
                    "and cannot be compared; remove the wrong one's folder and run the grid again"
                )
    for task in dict.fromkeys(cell.task for cell in results):
        # What is cut by svd-truncate was trained at the scale of the recipe; afterwards its scale has no meaning.
        scales = [one.scale for cell, one in results.items() if cell.task == task and cell.method != "svd-truncate"]
        known = [scale for scale in scales if scale is not None]
        if known and not all(math.isclose(scale, known[0]) for scale in known):
            raise ComparisonError(
                f"{task}: adapters have different effective scales ({min(known):g} to {max(known):g}); a comparison needs one"
            )


def _metric(task: str, wanted: str | None, results: Mapping[Cell, Measured]) -> str:
    known = next((list(one.metrics) for cell, one in results.items() if cell.task == task), [])
    if wanted is not None and known and wanted not in known:
        raise ComparisonError(f"metric {wanted!r} is none of {task}'s; allowed: {', '.join(known)}")
    return wanted or next(iter(known), "-")


def sentence(one: Row | Contrast, level: float = 0.05) -> str:
    """What can be said of a method against uniform LoRA, or against one of its controls, in plain words."""
    where = f"{one.task}, budget {one.budget}: {one.method}"
    difference, other = one.difference, AGAINST[one.control] if isinstance(one, Contrast) else "uniform LoRA"
    uncut = math.nan if isinstance(one, Contrast) else one.uncut
    before = "" if math.isnan(uncut) else f"; before it was cut {uncut:.4f}"
    if difference is None:
        return f"{where} is what the others are compared with" + (
            f" ({one.metric} {one.mean:.4f})." if isinstance(one, Row) else "."
        )
    size = f"{difference.mean:+.4f} {one.metric} (bootstrap interval {difference.low:+.4f} to {difference.high:+.4f})"
    return in_words(where, other, difference, size, asked=one.asked, level=level, more=before)


def in_words(
    where: str, other: str, difference: Difference, size: str, *, asked: int, level: float = 0.05, more: str = ""
) -> str:
    """What can be said of a difference, in plain words.

    Args:
        where: what is compared, with where it was measured.
        other: what it is compared with.
        difference: after Holm's correction.
        size: of the difference, with its interval.
        asked: seeds of the grid.
        level: of the claims.
        more: behind it.

    """
    if difference.pairs < 2:
        plural = "s" * (difference.pairs != 1)
        return f"{where} cannot be compared: {difference.pairs} seed{plural} in common with {other}{more}."
    shown = f"p = {difference.holm:.2g} after Holm's correction, {difference.pairs} seeds"
    if difference.pairs < asked:
        # A method that fails now and then must not look better for it.
        shown += f" ({asked - difference.pairs} of {asked} have no value and are left out)"
    if claim := difference.claim(level):
        return f"{where} is {'better' if claim > 0 else 'worse'} than {other} by {size}; {shown}{more}."
    if difference.holm < level:
        return f"{where}: the mean and the ranks of the differences to {other} point to different sides: {size}; {shown}{more}."
    if difference.mean == 0:
        return f"{where}: no mean difference to {other} in {difference.pairs} seeds{more}."
    needed = (
        "not even 1,000 seeds would show a difference of this size"
        if difference.seeds_needed is None
        else f"a difference of this size would take about {difference.seeds_needed} seeds to show in a table of this size"
    )
    return f"{where}: no difference to {other} that {difference.pairs} seeds can show: {size}; {shown}; {needed}{more}."
