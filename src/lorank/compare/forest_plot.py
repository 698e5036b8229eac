"""Differences to uniform LoRA with their intervals, one line for each method, controls below: a comparison at a glance."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorank.compare.answer import Row
from lorank.compare.cells import CONTROLS
from lorank.compare.statistics import Difference
from lorank.report.picture import drawable, drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = (0.2, 0.62, 0.78, 1.0)  # right ends of the columns of numbers


def draw_forest_plot(rows: Sequence[Row], path: Path, level: float = 0.05) -> None:
    """Draw a PNG: a panel for each task and budget; filled marks are claims after Holm's correction, hollow ones are not.

    At the right of each line are the mean, its interval, the number of paired seeds n, and p after Holm's correction. Controls
    stand below the methods.

    Args:
        rows: of `answer`.
        path: where the picture goes.
        level: of the claims.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(_figure(rows, level), path)


def _figure(rows: Sequence[Row], level: float) -> "Figure":
    from matplotlib.figure import Figure

    panels = dict.fromkeys((row.task, row.budget) for row in rows)
    shown = {panel: _lines([row for row in rows if (row.task, row.budget) == panel]) for panel in panels}
    heights = [0.85 + 0.32 * max(1, len(lines)) for lines in shown.values()]
    figure = Figure(figsize=(11, sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 2, height_ratios=heights, width_ratios=(5, 3), squeeze=False)
    within = next((row.difference.within for row in rows if row.difference), None)
    for (axis, beside), ((task, budget), lines) in zip(axes, shown.items(), strict=True):
        _draw_panel(axis, beside, lines, level)
        axis.axvline(0, color="black", linewidth=1)
        if within:
            axis.axvspan(-within, within, color="tab:blue", alpha=0.08)
        metric = next((row.metric for row in lines if row is not None), "")
        title = f"{task}, budget {budget}: {metric} minus that of uniform LoRA"
        axis.set_title(drawable(title), loc="left", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    said = f"mean and bootstrap interval over n paired seeds; filled: p < {level:g} after Holm's correction"
    if within:
        said += f"; blue: equal within {within:g}"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8)
    return figure


def _lines(rows: Sequence[Row]) -> list[Row | None]:
    """What is drawn from top to bottom: methods, then, below a line (None), the controls."""
    compared = [row for row in rows if row.difference]
    controls = [row for row in compared if row.method in CONTROLS]
    methods = [row for row in compared if row.method not in CONTROLS]
    return [*methods, None, *controls] if methods and controls else [*methods, *controls]


def _draw_panel(axis: "Axes", beside: "Axes", lines: Sequence[Row | None], level: float) -> None:
    """Marks and intervals, and beside them the same in numbers."""
    for place, row in enumerate(reversed(lines)):
        if row is None:
            axis.axhline(place, color="black", linewidth=0.6)
            beside.text(0, place, "controls", va="center", fontsize=8, style="italic")
            continue
        difference = row.difference
        cells = ["no pairs", "", "", ""]
        if difference is not None and not math.isnan(difference.mean):
            _draw_difference(axis, place, difference, level)
            interval = f"{difference.low:+.4f} to {difference.high:+.4f}"
            known = not math.isnan(difference.low), not math.isnan(difference.holm)
            seeds = f"{difference.pairs}" + (f" of {row.asked}" if difference.pairs < row.asked else "")
            chance = f"{difference.holm:.2g}" if known[1] else "-"
            cells = [f"{difference.mean:+.4f}", interval if known[0] else "-", seeds, chance]
        _write(beside, place, cells)
    _write(beside, len(lines) - 0.15, ["mean", "interval", "n", "p (Holm)"])
    beside.set_axis_off()
    beside.set_xlim(0, 1)
    axis.set_yticks(
        [place for place, row in enumerate(reversed(lines)) if row is not None],
        [drawable(row.method) for row in reversed(lines) if row is not None],
    )
    for one in (axis, beside):
        one.set_ylim(-0.6, len(lines) - 0.4)


def _write(axis: "Axes", place: float, cells: Sequence[str]) -> None:
    for x, cell in zip(_COLUMNS, cells, strict=True):
        axis.text(x, place, cell, ha="right", va="center", fontsize=8)


def _draw_difference(axis: "Axes", place: int, difference: Difference, level: float) -> None:
    claim = difference.claim(level)
    equal = not claim and difference.equal(level)
    color = "tab:blue" if equal else {0: "tab:gray", 1: "tab:green", -1: "tab:red"}[claim]
    if not math.isnan(difference.low):
        axis.plot([difference.low, difference.high], [place, place], color=color, linewidth=2)
    axis.plot(
        [difference.mean], [place], "o", color=color, markersize=7,
        markerfacecolor=color if claim or equal else "white",
    )  # fmt: skip
