"""Differences to uniform LoRA with their intervals, one line for each method: what a comparison says at a glance."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorank.compare.answer import Row
from lorank.report.picture import drawable, drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_forest_plot(rows: Sequence[Row], path: Path, level: float = 0.05) -> None:
    """Draw a PNG: a panel for each task and budget; filled marks are claims after Holm's correction, hollow ones are not.

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
    shown = {panel: [row for row in rows if (row.task, row.budget) == panel and row.difference] for panel in panels}
    heights = [0.7 + 0.32 * max(1, len(panel_rows)) for panel_rows in shown.values()]
    figure = Figure(figsize=(8, sum(heights) + 0.8), layout="constrained")
    axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)
    within = next((row.difference.within for row in rows if row.difference), None)
    for axis, ((task, budget), panel_rows) in zip(axes[:, 0], shown.items(), strict=True):
        for place, row in enumerate(reversed(panel_rows)):
            difference = row.difference
            if difference is None or math.isnan(difference.mean):
                continue
            claim = difference.claim(level)
            equal = not claim and difference.equal(level)
            color = "tab:blue" if equal else {0: "tab:gray", 1: "tab:green", -1: "tab:red"}[claim]
            if not math.isnan(difference.low):
                axis.plot([difference.low, difference.high], [place, place], color=color, linewidth=2)
            axis.plot(
                [difference.mean], [place], "o", color=color, markersize=7,
                markerfacecolor=color if claim or equal else "white",
            )  # fmt: skip
        axis.axvline(0, color="black", linewidth=1)
        if within:
            axis.axvspan(-within, within, color="tab:blue", alpha=0.08)
        axis.set_yticks(range(len(panel_rows)), [drawable(row.method) for row in reversed(panel_rows)])
        axis.set_ylim(-0.6, len(panel_rows) - 0.4)
        metric = panel_rows[0].metric if panel_rows else ""
        title = f"{task}, budget {budget}: {metric} minus that of uniform LoRA"
        axis.set_title(drawable(title), loc="left", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    said = f"mean and bootstrap interval over paired seeds; filled: p < {level:g} after Holm's correction"
    if within:
        said += f"; blue: equal within {within:g}"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8)
    return figure
