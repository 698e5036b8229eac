"""Ranks laid out as layers x projections: the one picture of a plan that everybody reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorank.artefact import write_atomically
from lorank.module_names import places, stack_label
from lorank.plan import RankPlan
from lorank.report.picture import drawable, drawing


@dataclass(frozen=True)
class RankGrid:
    """Ranks by layer and projection.

    Attributes:
        layers: row names, in the model's order.
        projections: column names.
        ranks: `(layers, projections)` integers; -1 where there is no such module.

    """

    layers: tuple[str, ...]
    projections: tuple[str, ...]
    ranks: np.ndarray


def rank_grid(plan: RankPlan) -> RankGrid:
    """Lay the plan's ranks out. With several stacks (encoder and decoder) a row's name says which."""
    layers, projections, cells = grid_of(plan.ranks)
    return RankGrid(layers, projections, np.array([[-1 if rank is None else rank for rank in row] for row in cells]))


def grid_of(values: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], list[list[Any]]]:
    """Names of the layers, names of the projections, and the modules' values in that grid, None where there is none."""
    placed = places(values)
    rows = list(dict.fromkeys((place.stack, place.layer) for place in placed.values()))
    # In the order of the fullest layer: of an adapter that has lost modules, the first layer may name few of them.
    held = {row: [place.projection for place in placed.values() if (place.stack, place.layer) == row] for row in rows}
    columns = list(dict.fromkeys(name for row in sorted(rows, key=lambda row: -len(held[row])) for name in held[row]))
    several = len({stack for stack, _ in rows}) > 1
    cells: list[list[Any]] = [[None] * len(columns) for _ in rows]
    for name, place in placed.items():
        cells[rows.index((place.stack, place.layer))][columns.index(place.projection)] = values[name]
    return tuple(_row_name(stack, layer, several) for stack, layer in rows), tuple(columns), cells


def _row_name(stack: str, layer: int | None, several: bool) -> str:
    if layer is None:
        return stack or "model"
    return f"{stack_label(stack)} {layer}" if several else str(layer)


def draw_rank_map(plan: RankPlan, path: Path, title: str) -> None:
    """Draw the grid as a PNG: darker is more rank, the number is the rank, grey is a module without adapter.

    Warns:
        LorankWarning: it could not be drawn.

    """
    with drawing(path):
        _draw(rank_grid(plan), path, title)


def _draw(grid: RankGrid, path: Path, title: str) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows, columns = grid.ranks.shape
    figure = Figure(figsize=(max(5.5, 1.2 * columns + 1.6), max(3.2, 0.36 * rows + 1.9)), layout="constrained")
    axes = figure.subplots()
    shown = np.ma.masked_less(grid.ranks, 1)
    top = max(1, int(grid.ranks.max()))
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=max(top, 2), aspect="auto")
    axes.set_facecolor("#f0f0f0")
    for row in range(rows):
        for column in range(columns):
            rank = int(grid.ranks[row, column])
            if rank >= 0:
                colour = "#999999" if rank == 0 else "white" if rank > 0.55 * top else "black"
                axes.text(column, row, str(rank), ha="center", va="center", color=colour, fontsize=10)
    axes.set_xticks(range(columns), [drawable(name) for name in grid.projections], rotation=0 if columns <= 7 else 30)
    axes.set_yticks(range(rows), [drawable(name) for name in grid.layers])
    axes.set_ylabel("layer")
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(drawable(title), fontsize=10)
    figure.colorbar(image, ax=axes, label="rank", ticks=MaxNLocator(nbins=6, integer=True))
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=150))
