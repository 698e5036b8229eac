"""A metric over the values of a key, a line for each method, with intervals over seeds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorank.compare.answer import Row
from lorank.compare.statistics import bootstrap_interval
from lorank.compare.sweep.variants import Sweep
from lorank.report.picture import drawable, drawing, save_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX*"


def draw_line_plot(sweep: Sweep, rows: Sequence[Row], stem: Path, level: float = 0.05) -> None:
    """Draw a PNG and an SVG: a panel for each recipe, the mean of each method at each value with its bootstrap interval.

    Args:
        sweep: over a key.
        rows: of `answer`.
        stem: path of the pictures without their suffixes.
        level: 1 - confidence of the intervals.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(stem):
        figure = _figure(sweep, rows, level)
        for ending in (".png", ".svg"):
            save_picture(figure, stem.with_name(f"{stem.name}{ending}"))


def positions(names: Sequence[str]) -> tuple[list[float], int | None]:
    """Where values stand on an axis, and the base of its logarithm.

    Numbers stand at their value, on a logarithmic axis where they are three powers of 2 or of 10 at least; else values stand one
    beside the other, in their order.

    Returns:
        A position for each value; 2 or 10 for a logarithmic axis, else None.

    """
    try:
        numbers = [float(name) for name in names]
    except ValueError:
        return [float(place) for place in range(len(names))], None
    if not all(map(math.isfinite, numbers)):
        return [float(place) for place in range(len(names))], None
    for base in (2, 10):
        if len(numbers) > 2 and min(numbers) > 0 and all(_is_whole(math.log(value, base)) for value in numbers):
            return numbers, base
    return numbers, None


def _is_whole(value: float) -> bool:
    return abs(value - round(value)) < 1e-9


def _figure(sweep: Sweep, rows: Sequence[Row], level: float) -> "Figure":
    from matplotlib.figure import Figure

    names = [variant.name for variant in sweep.variants]
    at, base = positions(names)
    recipes = sweep.recipes
    size = (5.2 * min(len(recipes), 3), 3.9 * math.ceil(len(recipes) / 3))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(math.ceil(len(recipes) / 3), min(len(recipes), 3), squeeze=False)
    for axis in axes.flat[len(recipes) :]:
        axis.set_visible(False)
    for recipe, axis in zip(recipes, axes.flat, strict=False):
        _panel(axis, sweep, recipe, rows, at, base, level)
        if base is None:
            axis.set_xticks(at, [drawable(name) for name in names])
        else:
            axis.set_xscale("log", base=base)
            axis.set_xticks(at, names)
            axis.minorticks_off()
        axis.set_xlabel(drawable(str(sweep.key)))
        axis.grid(alpha=0.3)
    known, count = {len(row.known) for row in rows}, len(sweep.seeds)
    said = f"mean of {'up to ' * (len(known) > 1)}{count} seed{'s' * (count != 1)}"
    if count > 1:
        said += "; bars: bootstrap interval of the mean over seeds"
    figure.supxlabel(said, fontsize=8)
    return figure


def _panel(
    axis: Any, sweep: Sweep, recipe: str, rows: Sequence[Row], at: Sequence[float], base: int | None, level: float
) -> None:
    import numpy as np

    methods = list(dict.fromkeys(row.method for row in rows))
    width = 0.0 if base is not None else 0.012 * (max(at) - min(at))
    metric = "-"
    for number, method in enumerate(methods):
        shift = number - (len(methods) - 1) / 2
        xs, means, lows, highs = [], [], [], []
        for variant, place in zip(sweep.variants, at, strict=True):
            row = next((one for one in rows if (one.task, one.method) == (sweep.task(recipe, variant), method)), None)
            if row is None or not row.known:
                continue
            metric = row.metric
            low, high = bootstrap_interval(np.array(row.known), level=level)
            # Beside each other, so that intervals of methods do not cover each other.
            xs.append(place * 1.025**shift if base is not None else place + shift * width)
            means.append(row.mean)
            lows.append(0.0 if math.isnan(low) else row.mean - low)
            highs.append(0.0 if math.isnan(high) else high - row.mean)
        order = sorted(range(len(xs)), key=xs.__getitem__)
        xs, means, lows, highs = ([values[k] for k in order] for values in (xs, means, lows, highs))
        axis.errorbar(
            xs, means, yerr=[np.maximum(lows, 0), np.maximum(highs, 0)], marker=_MARKERS[number % len(_MARKERS)],
            markersize=5, linewidth=1.4, capsize=3, label=drawable(method),
        )  # fmt: skip
    axis.set_ylabel(drawable(metric))
    axis.set_title(drawable(recipe), loc="left", fontsize=10)
    axis.legend(fontsize=8)
