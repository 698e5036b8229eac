"""Which methods are not beaten: no other is at least as good, as small and as fast, and better in one of these."""

import math
from collections.abc import Mapping, Sequence
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
    from matplotlib import colormaps
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    placed = [row for row in rows if row.not_beaten is not None]
    tasks = list(dict.fromkeys(row.task for row in placed)) or [""]
    names = list(dict.fromkeys(_name(row, rows) for row in placed))
    # Ten strong colours, then their pale ones: no two of twenty methods look the same.
    palette = [colormaps["tab20"](place) for place in (*range(0, 20, 2), *range(1, 20, 2))]
    colors = {name: to_hex(palette[number % 20]) for number, name in enumerate(names)}
    figure = Figure(figsize=(10, 3.2 * len(tasks) + 0.4), layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False, sharey="row")
    for (left, right), task in zip(panels, tasks, strict=True):
        of_task = {_name(row, rows): row for row in placed if row.task == task}
        _panel(left, of_task, colors, {name: row.parameters[1] for name, row in of_task.items()}, integer=True)
        _panel(right, of_task, colors, {name: total_seconds(row) for name, row in of_task.items()})
        left.set_xlabel("parameters", fontsize=8)
        right.set_xlabel("seconds, with what came before the training", fontsize=8)
        left.set_title(drawable(task), loc="left", fontsize=10)
        left.set_ylabel(next(iter(of_task.values())).metric if of_task else "")
    marks = [
        Line2D([], [], marker="o", linestyle="", color=color, label=drawable(name)) for name, color in colors.items()
    ]
    if marks:
        figure.legend(handles=marks, loc="outside right upper", fontsize=8, frameon=False)
    said = "mean and standard deviation over seeds; filled: not beaten in metric, parameters and time together"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8)
    return figure


def _name(row: Row, rows: Sequence[Row]) -> str:
    """A method, with its budget where there are several."""
    return f"{row.method}, {row.budget}" if len({one.budget for one in rows}) > 1 else row.method


def _panel(
    axis: "Axes",
    rows: Mapping[str, Row],
    colors: Mapping[str, str],
    costs: Mapping[str, float],
    *,
    integer: bool = False,
) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    for name, row in rows.items():
        axis.errorbar(
            [costs[name]], [row.mean], [0.0 if math.isnan(row.std) else row.std], fmt="o", color=colors[name],
            ecolor="lightgray", markersize=7, markerfacecolor=colors[name] if row.not_beaten else "white",
            zorder=3 if row.not_beaten else 2,
        )  # fmt: skip
    least, most = min(costs.values(), default=0), max(costs.values(), default=0)
    if 0 < 10 * least < most:
        axis.set_xscale("log")
        ticks = [10.0**power for power in range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)]
        # matplotlib writes powers as formulas, which names in pictures must not become.
        axis.set_xticks(ticks, [_short(tick) for tick in ticks])
        axis.set_xticks([], minor=True)
    else:  # numbers that differ little are long: few of them, or they lie upon one another
        axis.xaxis.set_major_locator(MaxNLocator(4, integer=integer))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    axis.grid(alpha=0.3)


def _short(number: float) -> str:
    """10,000,000 as 10M."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:g}{name}"
    return f"{number:g}"
