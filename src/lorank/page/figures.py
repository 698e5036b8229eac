"""Loss curves and the margin of a plan as figures; and any figure as SVG inside of a page, in the page's own colours."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorank.module_names import from_layer_on
from lorank.page.margin import PlanMargin
from lorank.page.run_folder import LossCurve
from lorank.report.heat_map import INK
from lorank.report.picture import Sheet, drawable, picture_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's, those that are seen on white and on black: colour-blind readers tell them apart.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00", "#56b4e9")
_MOST_POINTS = 600  # of a curve; of more, means of neighbours are drawn


def loss_figure(curves: Sequence[LossCurve]) -> "Figure":
    """Draw the training losses of stages and, dashed with dots, those on `data.eval`, over optimizer steps."""
    sheet = Sheet(4.7, 2.75, "")
    axes = _plain_axes(sheet, 0.62, 0.0, 3.9, 2.2)
    for number, curve in enumerate(curves):
        colour = _COLOURS[number % len(_COLOURS)]
        if curve.steps:
            steps, losses = _thinned(curve.steps, curve.losses)
            dot = "o" if len(steps) < 3 else None
            axes.plot(steps, losses, color=colour, linewidth=1.6, marker=dot, label=drawable(curve.stage))
        if curve.eval_steps:
            steps, losses = _thinned(curve.eval_steps, curve.eval_losses)
            axes.plot(
                steps, losses, color=colour, linestyle="--", marker=".", label=f"{drawable(curve.stage)}: data.eval"
            )
    axes.set_xlabel("optimizer step", color=INK)
    axes.set_ylabel("loss", color=INK)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    return sheet.figure


def margin_figure(margin: PlanMargin) -> "Figure":
    """Draw the units nearest to the threshold: filled dots are in the plan, rings are not; bars are one standard error."""
    sheet = Sheet(4.7, 0.55 + 0.2 * len(margin.units), "")
    names = [f"{short_module(unit.module)} · {unit.unit}" for unit in margin.units]
    left = 0.25 + 0.075 * max(map(len, names))
    axes = _plain_axes(sheet, left, 0.0, max(1.6, 4.55 - left), 0.2 * len(margin.units))
    # In units that leave few digits: the axis says which.
    unit = max(abs(one.score) for one in margin.units) or 1.0
    for place, one in enumerate(margin.units):
        colour = _COLOURS[0] if one.kept else _COLOURS[1]
        if one.error is not None:
            axes.plot(
                [(one.score - one.error) / unit, (one.score + one.error) / unit],
                [place, place],
                color=colour,
                linewidth=1,
            )
        face = colour if one.kept else "none"
        axes.plot([one.score / unit], [place], marker="o", markersize=4.5, color=colour, markerfacecolor=face)
    axes.axvline(margin.threshold / unit, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(f"score{' per parameter' if margin.per_parameter else ''}, in {unit:.2g}", color=INK)
    return sheet.figure


def short_module(name: str) -> str:
    """A module's name without what all names of a model begin with, in few letters."""
    told = drawable(from_layer_on(name))
    return told if len(told) <= 24 else f"…{told[-23:]}"


def inline_svg(figure: "Figure", key: str, label: str) -> str:
    """The figure as an `<svg>` element: ink is the page's own, the ground is clear, and ids are unique by `key`.

    Args:
        figure: of matplotlib.
        key: letters and digits, different for each figure of a page.
        label: what a screen reader says, already escaped for an attribute.

    """
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    text = picture_bytes(figure, "svg").decode("utf-8")
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = text.replace(INK, "currentColor").replace("#000000", "currentColor")
    text = re.sub(r'\bid="', f'id="{key}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{key}-", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px inherit", text)
    head = re.match(r'<svg[^>]*?viewBox="([^"]*)"[^>]*>', text)
    assert head is not None
    width = float(head[1].split()[2])
    opened = f'<svg class="figure" role="img" aria-label="{label}" viewBox="{head[1]}" style="max-width:{1.45 * width:.0f}px">'
    return opened + text[head.end() :]


def _plain_axes(sheet: Sheet, left: float, top: float, width: float, height: float) -> "Axes":
    axes = sheet.axes(left, top, width, height)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    return axes


def _thinned(steps: Sequence[int], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over neighbours, so that no more than `_MOST_POINTS` are drawn."""
    size = -(-len(steps) // _MOST_POINTS)
    groups = [slice(start, start + size) for start in range(0, len(steps), size)]
    return (
        [sum(steps[one]) / len(steps[one]) for one in groups],
        [sum(losses[one]) / len(losses[one]) for one in groups],
    )
