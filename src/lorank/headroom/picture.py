"""Losses of all plans by seed, uniform ranks marked: what headroom saw, at a glance."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorank.headroom.verdict import Headroom
from lorank.report.picture import drawable, drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_headroom(names: Sequence[str], means: np.ndarray, headroom: Headroom, path: Path) -> None:
    """Draw a picture: a row for each plan, best first, a point for each seed; what a seed does to all plans is taken off.

    Args:
        names: of the plans, uniform ranks first.
        means: `(plans, seeds)` mean losses.
        headroom: the verdict on them.
        path: of the picture, .png or .svg.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(_figure(names, means, headroom), path)


def _figure(names: Sequence[str], means: np.ndarray, headroom: Headroom) -> "Figure":
    from matplotlib.figure import Figure

    shown = means - means.mean(0, keepdims=True) + means.mean()
    order = np.argsort(-shown.mean(1), kind="stable")
    figure = Figure(figsize=(7.5, 1.3 + 0.24 * len(names)), layout="constrained")
    axis = figure.subplots()
    uniform = float(shown[0].mean())
    axis.axvspan(uniform - headroom.smallest, uniform, color="tab:green", alpha=0.12, linewidth=0)
    axis.axvline(uniform, color="black", linewidth=1)
    for place, number in enumerate(order):
        color = "black" if number == 0 else "tab:blue"
        axis.plot(shown[number], np.full(shown.shape[1], place), "o", color=color, markersize=3.5, alpha=0.6)
        axis.plot([shown[number].mean()], [place], "|", color=color, markersize=14, markeredgewidth=2)
    axis.set_yticks(range(len(names)), [drawable(names[number]) for number in order])
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel(
        "loss on held-out examples, a point for each seed (less what the seed does to all plans)", fontsize=8
    )
    low, high = headroom.interval
    title = f"{headroom.verdict}: gain of a chosen plan {headroom.gain.mean:+.4f} ({low:+.4f} to {high:+.4f})"
    axis.set_title(drawable(title), loc="left", fontsize=10)
    said = "line: uniform ranks; green: gains that are smaller than what counts"
    figure.supxlabel(said, x=0.01, ha="left", fontsize=8)
    return figure
