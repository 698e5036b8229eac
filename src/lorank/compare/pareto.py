"""Which methods are not beaten: no other is at least as good, as small and as fast, and better in one of these."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorank.compare.answer import Row
from lorank.compare.cells import FROM_PLAN
from lorank.report.picture import drawable, drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Parameters and times that differ by less than this count as equal: budgets are spent to less than a unit of rank, and the
# time of one training differs from call to call.
TOLERANCE = 0.05


def with_front(rows: Sequence[Row]) -> list[Row]:
    """The rows with `not_beaten`, among all methods and budgets of their task.

    Quality is the mean of the metric, without a test: a row may be beaten by less than what can be shown. Time is that of the
    training with what came before it. Controls that train the plan of another method are left out: they do not pay for it.

    Args:
        rows: of `answer`.

    """
    return [replace(row, not_beaten=_is_on_front(row, rows)) for row in rows]


def total_seconds(row: Row) -> float:
    """Wall time of the training and of what came before it."""
    return row.seconds + row.before


def _is_on_front(row: Row, rows: Sequence[Row]) -> bool | None:
    if not _can_be_placed(row):
        return None
    others = [other for other in rows if other.task == row.task and other is not row and _can_be_placed(other)]
    return not any(beats(other, row) for other in others)


def _can_be_placed(row: Row) -> bool:
    return row.method not in FROM_PLAN and math.isfinite(row.mean) and math.isfinite(total_seconds(row))


def beats(one: Row, other: Row) -> bool:
    """Whether a row is nowhere behind another, and somewhere before it."""
    costs = [(one.parameters[1], other.parameters[1]), (total_seconds(one), total_seconds(other))]
    behind = one.mean < other.mean or any(mine > theirs * (1 + TOLERANCE) for mine, theirs in costs)
    before = one.mean > other.mean or any(mine * (1 + TOLERANCE) < theirs for mine, theirs in costs)
    return before and not behind


def draw_pareto(rows: Sequence[Row], path: Path) -> None:
    """Draw a PNG: for each task its metric against parameters and against time; filled marks are not beaten.

    Args:
        rows: of `with_front`.
        path: where the picture goes.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(_figure(rows), path)


def _figure(rows: Sequence[Row]) -> "Figure":
    from matplotlib.figure import Figure

    placed = [row for row in rows if row.not_beaten is not None]
    tasks = list(dict.fromkeys(row.task for row in placed)) or [""]
    figure = Figure(figsize=(9, 3.2 * len(tasks) + 0.4), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    for (left, right), task in zip(panels, tasks, strict=True):
        of_task = [row for row in placed if row.task == task]
        _panel(left, of_task, [row.parameters[1] for row in of_task], "parameters")
        _panel(right, of_task, [total_seconds(row) for row in of_task], "seconds, with what came before the training")
        left.set_title(drawable(task), loc="left", fontsize=10)
        left.set_ylabel(of_task[0].metric if of_task else "")
    said = "mean and standard deviation over seeds; filled: not beaten in metric, parameters and time together"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8)
    return figure


def _panel(axis: "Axes", rows: Sequence[Row], costs: Sequence[float], label: str) -> None:
    several = len({row.budget for row in rows}) > 1
    for row, cost in zip(rows, costs, strict=True):
        color = "tab:blue" if row.not_beaten else "tab:gray"
        spread = 0.0 if math.isnan(row.std) else row.std
        axis.errorbar(
            [cost], [row.mean], [spread], fmt="o", color=color, ecolor="lightgray", markersize=6,
            markerfacecolor=color if row.not_beaten else "white",
        )  # fmt: skip
        name = f"{row.method}, {row.budget}" if several else row.method
        axis.annotate(drawable(name), (cost, row.mean), (5, 3), textcoords="offset points", fontsize=7, color=color)
    if costs and min(costs) > 0 and max(costs) > 10 * min(costs):
        axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_xlabel(label, fontsize=8)
    axis.grid(alpha=0.3)
