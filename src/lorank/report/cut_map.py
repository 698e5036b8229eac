"""Ranks before and after the cuts of an allocation, and after each of them (I-LoRA, Figure 1)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorank.allocation.cut_history import CutHistory
from lorank.report.heat_map import INK, RANKS, Paint, colour_map, colour_scale, draw_heat_map, short
from lorank.report.module_grid import ModuleGrid, module_grid
from lorank.report.picture import Sheet, drawing, save_picture
from lorank.report.rank_map import colour_bar, header_of, left_of, legend, rank_text, row_height

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

_WIDTH = 0.5  # inches of a cell
_TIME = 4.5  # inches of the map of all cuts
_TICKS = 8
_SEPARATOR = "#e69f00"  # seen on every blue and on white


def cuts_figure(history: CutHistory, title: str) -> "Figure":
    """Draw the ranks before the first cut beside those after the last one; of several cuts also those after each.

    In the third map a row is a module: those of one projection stand together, the lowest layer at the top. All maps have the
    same colours.
    """
    grid = module_grid(history.initial_ranks)
    states = [history.initial_ranks, *(cut.ranks for cut in history.cuts)]
    maps = [grid.means({name: float(rank) for name, rank in state.items()}) for state in states]
    norm, kind = colour_scale(np.stack(maps))
    height, left, top = row_height(grid), left_of(grid), header_of(grid) + 0.1
    inner = _WIDTH * len(grid.columns), height * len(grid.rows)
    apart = max(0.9, header_of(grid) - 0.2)  # a tilted name of the last column has room
    time = len(history.cuts) > 1
    names_wide = 0.3 + 0.075 * max(len(short(name).split("\n")[0]) for name in grid.columns)
    width = left + 2 * (inner[0] + apart) + (names_wide + _TIME + 0.3 if time else 0) + 0.9
    sheet = Sheet(width, top + max(inner[1], 1.0) + 0.75, title)
    paint = Paint(RANKS, rank_text, _WIDTH, height)
    for number, (said, values) in enumerate((("before", maps[0]), (_when(history), maps[-1]))):
        axes = sheet.axes(left + number * (inner[0] + apart), top, *inner)
        mesh = draw_heat_map(axes, grid, values, norm, paint)
        if not number:
            axes.set_ylabel("layer", color=INK)
        total = sum(states[-1 if number else 0].values())
        axes.set_xlabel(f"{said}: total rank {total:,}", fontsize=9, color=INK)
    right = left + 2 * (inner[0] + apart)
    if time:
        axes = sheet.axes(right + names_wide, top, _TIME, max(inner[1], 1.0))
        _draw_over_time(axes, grid, np.stack(maps[1:]), [cut.step for cut in history.cuts], norm)
        right += names_wide + _TIME + 0.3
    label = "rank, mean of experts" if grid.grouped else "rank"
    colour_bar(sheet, mesh, (right, top, inner[1]), f"{label}\n({kind} scale)" if kind else label, whole=True)
    legend(sheet, np.stack([maps[0], maps[-1]]))
    return sheet.figure


def draw_cuts(history: CutHistory, path: Path, title: str) -> None:
    """Write `cuts_figure` to `path`, PNG or SVG.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        save_picture(cuts_figure(history, title), path)


def _when(history: CutHistory) -> str:
    if not history.cuts:
        return "no cut yet"
    count = len(history.cuts)
    return f"after {count} cuts" if count > 1 else f"after the cut at step {history.cuts[0].step:,}"


def _draw_over_time(axes: "Axes", grid: ModuleGrid, maps: np.ndarray, steps: list[int], norm: "Normalize") -> None:
    """`maps` is `(cuts, rows, columns)`; a row for every cell that holds a module, a column for every cut."""
    held = [(column, row) for column, row in np.argwhere(np.isfinite(maps[0]).T)]
    over_time = np.stack([maps[:, row, column] for column, row in held])
    shown = np.ma.masked_equal(over_time, 0)
    # An image in an SVG too: modules times cuts would be too many shapes.
    axes.pcolormesh(shown, cmap=colour_map(RANKS), norm=norm, rasterized=True)
    axes.set_ylim(len(held), 0)
    columns = [column for column, _ in held]
    starts = [columns.index(column) for column in range(len(grid.columns))]
    for start in starts[1:]:
        axes.axhline(start, color=_SEPARATOR, linewidth=1.2)
    middles = (np.array(starts) + np.array([*starts[1:], len(held)])) / 2
    axes.set_yticks(middles, [short(name).split("\n")[0] for name in grid.columns], fontsize=9)
    chosen = sorted({int(number) for number in np.linspace(0, len(steps) - 1, min(_TICKS, len(steps)))})
    axes.set_xticks([number + 0.5 for number in chosen], [f"{steps[number]:,}" for number in chosen], fontsize=8)
    axes.tick_params(length=0, labelcolor=INK)
    axes.set_xlabel("after the cut at step; a row is a module, by projection and layer", fontsize=9, color=INK)
