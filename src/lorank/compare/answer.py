"""From the results of a grid to what can be said of each method."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

from lorank.compare.cells import BASELINE, CONTROLS, Cell, Measured
from lorank.compare.example_pairs import LossDifference
from lorank.compare.statistics import Difference, Test, compare, corrected, paired_differences
from lorank.errors import ComparisonError


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
        loss: mean loss on the test part; NaN where there is none.
        losses: difference of the test losses to uniform LoRA's, in pairs of seeds and examples; None where none were kept.
        base_loss: of decoders with a general text: mean loss of a token of it under the base model; NaN for others.
        forgotten: seed -> how much larger that loss is after the training; empty without a general text.
        not_beaten: whether no row of the task is at least as good, as small and as fast, and better in one of these; None
            where that is not known.

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
    loss: float = math.nan
    losses: LossDifference | None = None
    base_loss: float = math.nan
    forgotten: Mapping[int, float] = field(default_factory=dict)
    not_beaten: bool | None = None

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
    within: float | None = None,
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
        within: the largest difference that counts as none; None: equality is not tested.

    Raises:
        ComparisonError: a level, bound or metric that there is not, or cells of one seed that saw other data or other tokens.

    """
    if not 0 < level < 1:
        raise ComparisonError(f"level is {level}; allowed: a probability between 0 and 1, for example 0.05")
    if within is not None and not 0 < within < math.inf:
        raise ComparisonError(f"the bound of equality is {within}; allowed: a difference above 0, for example 0.01")
    check_equal(results)
    rows = []
    for task, budget, method in dict.fromkeys((cell.task, cell.budget, cell.method) for cell in cells):
        mine = {c.seed: results.get(c) for c in cells if (c.task, c.budget, c.method) == (task, budget, method)}
        theirs = {c.seed: results.get(c) for c in cells if (c.task, c.budget, c.method) == (task, budget, BASELINE)}
        metric = _metric(task, (metrics or {}).get(task), results)
        values = {seed: one.metrics[metric] for seed, one in mine.items() if one is not None}
        baseline = {seed: one.metrics[metric] for seed, one in theirs.items() if one is not None}
        pairs = paired_differences(values, baseline)
        difference = None if method == BASELINE else compare(pairs, level=level, test=test, within=within)
        rows.append(_row(task, budget, method, metric, values, mine, difference))
    compared = [row for row in rows if row.difference is not None]
    family = corrected([row.difference for row in compared if row.difference is not None], level=level, test=test)
    right = {id(row): difference for row, difference in zip(compared, family, strict=True)}
    return [replace(row, difference=right.get(id(row))) for row in rows]


def contrasts(
    rows: Sequence[Row],
    controlled: Mapping[tuple[str, str], str],
    *,
    level: float = 0.05,
    test: Test = "t",
    within: float | None = None,
) -> list[Contrast]:
    """Methods against their controls: is it the plan that does it?

    These are a family of their own: Holm's correction is over them, and not over the differences to uniform LoRA.

    Args:
        rows: of `answer`.
        controlled: (task, control) -> the method that is tested against it.
        level: of claims and intervals.
        test: "t" or "wilcoxon".
        within: the largest difference that counts as none; None: equality is not tested.

    """
    uncorrected = []
    for row, mine in product(rows, rows):
        tested = (mine.task, mine.budget, mine.method) == (row.task, row.budget, controlled.get((row.task, row.method)))
        if tested and row.method in CONTROLS:
            pairs = paired_differences(mine.values, row.values)
            difference = compare(pairs, level=level, test=test, within=within)
            uncorrected.append(
                Contrast(row.task, row.budget, mine.method, row.method, row.metric, difference, row.asked)
            )
    right = corrected([one.difference for one in uncorrected], level=level, test=test)
    return [replace(one, difference=difference) for one, difference in zip(uncorrected, right, strict=True)]


def with_losses(rows: Sequence[Row], losses: Mapping[tuple[str, str, str], LossDifference]) -> list[Row]:
    """The rows with differences of test losses: those of `loss_differences`."""
    return [replace(row, losses=losses.get((row.task, row.budget, row.method))) for row in rows]


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
    known, loss = _numbers(values), [one.loss for one in done if one.loss is not None]
    general = {seed: one.general_text for seed, one in cells.items() if one is not None and one.general_text}
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
        loss=statistics.fmean(loss) if loss else math.nan,
        base_loss=statistics.fmean(one["base loss"] for one in general.values()) if general else math.nan,
        forgotten={seed: one["loss"] - one["base loss"] for seed, one in general.items()},
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
        base = [
            one.general_text["base loss"] for cell, one in results.items() if cell.task == task and one.general_text
        ]
        if base and not all(math.isclose(loss, base[0], rel_tol=1e-3) for loss in base):
            raise ComparisonError(
                f"{task}: the base model's loss on data.general_text is {min(base):g} in some cells and {max(base):g} in others: "
                "the text changed while the grid was run; give another --output"
            )
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
