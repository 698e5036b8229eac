"""Ranks as a map of layers x projections, and beside it the importance that they were assigned by (I-LoRA, Figures 3 and 4)."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorank.errors import PlanError
from lorank.plan import RankPlan
from lorank.report.heat_map import (
    EMPTY,
    IMPORTANCE,
    INK,
    MISSING,
    OUTLINE,
    RANKS,
    Margin,
    Paint,
    colour_scale,
    draw_heat_map,
    draw_margins,
    tilted_length,
)
from lorank.report.module_grid import ModuleGrid, module_grid
from lorank.report.picture import Sheet, drawable, drawing, save_picture
from lorank.scores import ImportanceScores

if TYPE_CHECKING:
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_WIDTH, _MARGIN, _BAR = 0.62, 0.55, 1.0  # inches: of a cell, of a column of numbers, of a colour bar with its labels
_TALLEST, _LOWEST, _HIGHEST = 16.0, 0.13, 0.3  # inches: of a map of many layers, of a row


def is_made_from(plan: RankPlan, scores: ImportanceScores) -> bool:
    """Whether a plan is of these scores: of the same modules, and by the fingerprint that it records, if it does."""
    recorded = plan.provenance.get("scores")
    return set(scores.scores) == set(plan.ranks) and recorded in (None, scores.fingerprint)


def module_importance(plan: RankPlan, scores: ImportanceScores) -> dict[str, float]:
    """Importance of every module of a plan, in percent of all: the sum of the scores of its units.

    `100 Σ_i S_mi / Σ_m |Σ_i S_mi|`. I-LoRA's eq. 4 is an L1 norm, which adds up over the parameters of a module; the paper does
    not say how its figures add units up. Units are those that were scored, kept or not; 0 where all scores are 0.

    Raises:
        PlanError: the plan was made from other scores, or they are of other modules.

    """
    if not is_made_from(plan, scores):
        raise PlanError("the plan was made from other scores than these; give the scores.safetensors of the same run")
    sums = {name: float(scores.scores[name].sum()) for name in plan.ranks}
    total = sum(map(abs, sums.values()))
    return {name: 100 * value / total if total else 0.0 for name, value in sums.items()}


def rank_figure(plan: RankPlan, scores: ImportanceScores | None = None, title: str | None = None) -> "Figure":
    """Draw a plan: darker is more rank; beside it sums and means of the ranks of layers and projections, and their parameters.

    Args:
        plan: to be drawn. The routed experts of a layer share a cell, which shows their mean.
        scores: that it was made from: a second map shows the importance of each module, see `module_importance`.
        title: above; None says method, model and what is spent.

    Returns:
        A figure of matplotlib.

    Raises:
        PlanError: the plan was made from other scores.

    """
    importance = None if scores is None else module_importance(plan, scores)
    grid = module_grid(plan.ranks)
    height = row_height(grid)
    left, top = left_of(grid), header_of(grid)
    inner, panels = (_WIDTH * len(grid.columns), height * len(grid.rows)), 1 if importance is None else 2
    last = tilted_length(grid, _WIDTH) * 0.055 - _WIDTH / 2  # inches of a tilted name beyond the last column
    step = inner[0] + max(3 * _MARGIN + _BAR + 0.35, last)
    right = left + (panels - 1) * step + inner[0] + max((5 - 2 * panels) * _MARGIN + _BAR + 0.2, last)
    sheet = Sheet(right, top + max(inner[1], 1.0) + 1.03, title or plan_title(plan))
    ranks = {name: float(rank) for name, rank in plan.ranks.items()}
    axes = sheet.axes(left, top, *inner)
    values, paint = grid.means(ranks), Paint(RANKS, rank_text, _WIDTH, height)
    norm, kind = colour_scale(values)
    mesh = draw_heat_map(axes, grid, values, norm, paint)
    axes.set_ylabel("layer", color=INK)
    spent = {name: 100 * rank * plan.unit_costs[name] / max(1, plan.spent) for name, rank in plan.ranks.items()}
    shares = grid.sums(spent)
    draw_margins(
        axes,
        [*_ranks_of(grid, ranks, 1, " "), Margin("% of parameters", _sums(shares, 0))],
        [*_ranks_of(grid, ranks, 0, "\n"), Margin("% of\nparam.", _sums(shares, 1))],
        paint,
    )
    bar = left + inner[0] + 3 * _MARGIN + 0.15
    colour_bar(
        sheet, mesh, (bar, top, inner[1]), _label("rank, mean of experts" if grid.grouped else "rank", kind), whole=True
    )
    legend(sheet, values)
    if importance is not None:
        values = grid.sums(importance)
        norm, kind = colour_scale(values)
        decimals = 1 if np.nanmean(np.abs(values)) >= 1 else 2
        paint = Paint(IMPORTANCE, partial(percent_text, decimals=decimals), _WIDTH, height, rows=False)
        axes = sheet.axes(left + step, top, *inner)
        mesh = draw_heat_map(axes, grid, values, norm, paint)
        margins = Margin("", _sums(values, 0)), Margin("sum", _sums(values, 1))
        draw_margins(axes, [margins[0]], [margins[1]], paint)
        bar = left + step + inner[0] + _MARGIN + 0.15
        label = _label("importance: sum of\nunit scores, % of all", kind)
        colour_bar(sheet, mesh, (bar, top, inner[1]), label)
    return sheet.figure


def plan_title(plan: RankPlan) -> str:
    """Method, preset, model and what is spent, in two lines."""
    made = plan.provenance
    named = str(made.get("method", "plan")) + (f" ({made['preset']})" if made.get("preset") else "")
    model = f" · {Path(str(made['model'])).name}" if made.get("model") else ""
    return f"{named}{model}\nbudget {plan.budget}: {plan.spending}, total rank {plan.total_rank}"


def draw_rank_map(plan: RankPlan, path: Path, title: str, scores: ImportanceScores | None = None) -> None:
    """Write `rank_figure` to `path`, PNG or SVG.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(rank_figure(plan, scores, title), path)


def row_height(grid: ModuleGrid) -> float:
    """Inches of a row: less where there are many."""
    return min(_HIGHEST, max(_LOWEST, _TALLEST / len(grid.rows)))


def left_of(grid: ModuleGrid) -> float:
    """Inches that the names of layers and the titles of margins take."""
    return max(1.1, 0.45 + 0.075 * max(len(drawable(name)) for name in grid.rows))


def header_of(grid: ModuleGrid) -> float:
    """Inches that the names of projections take."""
    lines = 0.15 if any("\n" in name for name in grid.columns) else 0.0
    return max(0.4, 0.22 + 0.044 * tilted_length(grid, _WIDTH)) + lines


def rank_text(rank: float) -> str:
    """A rank in its cell; a mean of experts has a decimal."""
    return f"{rank:.0f}" if float(rank).is_integer() else f"{rank:.1f}"


def colour_bar(
    sheet: Sheet, mesh: "ScalarMappable", place: tuple[float, float, float], label: str, *, whole: bool = False
) -> None:
    """Draw a colour bar at `left, top`, about as high as a map of `height`, with whole numbers or any."""
    from matplotlib.colors import AsinhNorm, LogNorm
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    left, top, height = place
    bar = sheet.figure.colorbar(mesh, cax=sheet.axes(left, top, 0.14, min(max(height, 1.0), 3.0)))
    axis = bar.ax.yaxis
    if isinstance(mesh.norm, LogNorm):
        axis.set_major_locator(LogLocator(2) if whole else LogLocator(10, subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
    elif isinstance(mesh.norm, AsinhNorm):
        middle = float(f"{mesh.norm.inverse(0.5):.1g}")
        ends = float(mesh.norm.vmin or 0.0), middle, float(mesh.norm.vmax or 0.0)
        axis.set_major_locator(
            FixedLocator([*(end for end in ends if abs(float(mesh.norm(end) - mesh.norm(0.0))) > 0.08), 0.0])
        )
        axis.set_minor_locator(NullLocator())
    elif whole:
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    bar.set_label(label, fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=8, labelcolor=INK)
    bar.outline.set_visible(False)


def legend(sheet: Sheet, values: np.ndarray) -> None:
    """Say in the lower left corner what an empty and a hatched cell are, where there are any."""
    from matplotlib.patches import Patch

    handles = []
    if (values == 0).any():
        handles.append(Patch(facecolor=EMPTY, edgecolor=OUTLINE, linewidth=0.6, label="0: no adapter"))
    if np.isnan(values).any():
        handles.append(Patch(facecolor=MISSING, edgecolor="white", hatch="/////", label="no such module"))
    if handles:
        sheet.figure.legend(handles=handles, loc="lower left", ncols=2, fontsize=8, frameon=False, labelcolor=INK)


def _label(what: str, kind: str) -> str:
    return f"{what}\n({kind} scale)" if kind else what


def _ranks_of(grid: ModuleGrid, ranks: dict[str, float], axis: int, between: str) -> list[Margin]:
    """Sum and mean of the ranks of the modules of every row (`axis` 0) or column (1); each expert counts."""
    count = len(grid.columns if axis else grid.rows)
    held: list[list[float]] = [[] for _ in range(count)]
    for name, rank in ranks.items():
        held[grid.cells[name][axis]].append(rank)
    sums, means = [f"{sum(of):,.0f}" for of in held], [f"{np.mean(of):.1f}" for of in held]
    return [Margin(f"sum of{between}ranks", sums), Margin(f"mean{between}rank", means)]


def _sums(shares: np.ndarray, axis: int) -> list[str]:
    """Sums over columns (`axis` 0) or rows (1), in percent."""
    return [percent_text(value) for value in np.nansum(shares, axis=axis)]


def percent_text(share: float, decimals: int = 1) -> str:
    """Percent; what would be rounded to zero and is above it is said to be below the last decimal."""
    text, last = f"{share:.{decimals}f}", 10**-decimals
    if share and not float(text):
        return f"<{last:g}" if share > 0 else f">-{last:g}"
    return text
