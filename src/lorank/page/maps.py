"""Maps of layers x projections for the page: what each cell shows, and what a slider puts in its place."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from lorank.errors import as_seen
from lorank.plan import RankPlan
from lorank.report.heat_map import SKEWED
from lorank.report.module_grid import ModuleGrid, module_grid

Kind = Literal["rank", "importance"]
_LETTER = 6.2  # pixels


@dataclass(frozen=True)
class MapCell:
    """One cell of a map.

    Attributes:
        row: its layer.
        column: its projection.
        where: layer and projection, in words.
        modules: their full names: one, or the routed experts of a layer.
        cost: parameters of a unit of rank of all of them.
        told: what a reader hears of it that no slider changes.

    """

    row: int
    column: int
    where: str
    modules: tuple[str, ...]
    cost: int
    told: str = ""


@dataclass(frozen=True)
class PageMap:
    """A map with one state, or with those of a slider.

    Attributes:
        key: unique in the page.
        title: of the figure.
        reading: how to read it, in a line.
        kind: what its numbers are.
        grid: rows and columns.
        cells: those that hold modules.
        states: a value for each cell, `(states, cells)`: sums over the modules of a cell.
        labels: of the states.
        slider: what the slider is over; empty where there is one state.
        start: state that is shown first.
        decimals: of the numbers in cells.

    """

    key: str
    title: str
    reading: str
    kind: Kind
    grid: ModuleGrid
    cells: tuple[MapCell, ...]
    states: np.ndarray
    labels: tuple[str, ...] = ("",)
    slider: str = ""
    start: int = 0
    decimals: int = 0
    cell: ClassVar[int] = 38  # pixels from one column to the next

    @property
    def colours(self) -> str:
        """What is not plain in the colours, in words."""
        said = " Violet is below zero." if (self.states < 0).any() else ""
        return said + (" Colours follow the logarithm." if self.scale["log"] else "")

    @property
    def height(self) -> int:
        """Pixels of a row: less where there are many layers."""
        return 22 if len(self.grid.rows) <= 40 else 17

    @property
    def left(self) -> float:
        """Pixels that names of layers take."""
        return 14 + _LETTER * max(len("layer"), *(len(name) for name in self.grid.rows))

    @property
    def top(self) -> float:
        """Pixels that tilted names of projections take."""
        return 20 + 0.66 * _LETTER * max(len(self.column_name(k)) for k in range(len(self.grid.columns)))

    @property
    def width(self) -> float:
        """Pixels of the whole: a column of sums, and room for a tilted name that leans out."""
        inner = self.left + self.cell * (len(self.grid.columns) + 1) + 14
        last = len(self.column_name(len(self.grid.columns) - 1)) * _LETTER * 0.76
        return max(inner, self.left + self.cell * (len(self.grid.columns) - 0.5) + last)

    @property
    def depth(self) -> float:
        """Pixels from top to bottom: a row of sums."""
        return self.top + self.height * (len(self.grid.rows) + 1) + 12

    def column_name(self, column: int) -> str:
        """A projection in few letters."""
        name = " ".join(self.grid.columns[column].split())
        return name if len(name) <= 26 else f"…{name[-25:]}"

    @cached_property
    def scale(self) -> dict[str, Any]:
        """How colours follow values: `f(v) / f(most)`, f the identity or, for skewed values, `log(1 + v / unit)`."""
        shown = np.abs(self.states / np.array([len(cell.modules) for cell in self.cells]))
        above = shown[shown > 0]
        if not above.size:
            return {"log": False, "most": 1.0, "unit": 1.0}
        median = float(np.median(above))
        return {"log": bool(above.max() > SKEWED * median), "most": float(above.max()), "unit": median}

    def depth_of(self, value: float) -> float:
        """From a value to 0..1, as `scale` says."""
        scale = self.scale
        if scale["log"]:
            return math.log1p(abs(value) / scale["unit"]) / math.log1p(scale["most"] / scale["unit"])
        return abs(value) / float(scale["most"])

    def drawn(self) -> list[dict[str, Any]]:
        """The cells of the first state, with place, text and colour."""
        found = []
        for cell, total in zip(self.cells, self.states[self.start].tolist(), strict=True):
            mean = total / len(cell.modules)
            found.append(
                {
                    "x": self.left + self.cell * cell.column,
                    "y": self.top + self.height * cell.row,
                    "text": self.number(mean),
                    "t": round(self.depth_of(mean), 3),
                    "zero": mean == 0,
                    "below": mean < 0,
                    "label": self.spoken(cell, total),
                }
            )
        return found

    def number(self, value: float) -> str:
        """A value in its cell."""
        if value == 0:
            return "·"
        decimals = self.decimals or (0 if float(value).is_integer() else 1)
        text = f"{value:.{decimals}f}"
        return text.removeprefix("-") if not float(text) else text

    def spoken(self, cell: MapCell, total: float) -> str:
        """A cell in words, for hover, focus and screen readers."""
        mean = total / len(cell.modules)
        count = f" ({len(cell.modules)} experts, mean)" if len(cell.modules) > 1 else ""
        if self.kind == "rank":
            parameters = f", {round(mean * cell.cost):,} parameters"
            return (
                f"{cell.where}{count}: rank {self.number(mean) if mean else 0}{parameters if mean else ''}{cell.told}"
            )
        return f"{cell.where}{count}: {mean:.3g} % of all importance{cell.told}"

    def sums(self, axis: int) -> list[float]:
        """Sums of the first state over a row (`axis` 0) or a column (`axis` 1)."""
        count = len(self.grid.rows) if axis == 0 else len(self.grid.columns)
        found = [0.0] * count
        for cell, total in zip(self.cells, self.states[self.start].tolist(), strict=True):
            found[cell.row if axis == 0 else cell.column] += total
        return found

    def data(self) -> dict[str, Any]:
        """What the page's script needs: numbers of the states and the geometry is in the drawing."""
        return {
            "key": self.key,
            "kind": self.kind,
            "decimals": self.decimals,
            "scale": self.scale,
            "labels": [as_seen(label) for label in self.labels],
            "rows": [cell.row for cell in self.cells],
            "columns": [cell.column for cell in self.cells],
            "where": [as_seen(cell.where) for cell in self.cells],
            "told": [as_seen(cell.told) for cell in self.cells],
            "counts": [len(cell.modules) for cell in self.cells],
            "costs": [cell.cost for cell in self.cells],
            "states": [[round(value, 4) for value in state] for state in self.states.tolist()],
        }


def cells_of(
    grid: ModuleGrid, unit_costs: Mapping[str, int], told: Mapping[str, str] | None = None
) -> tuple[MapCell, ...]:
    """The cells of a grid that hold modules, by row."""
    held: dict[tuple[int, int], list[str]] = {}
    for name, place in grid.cells.items():
        held.setdefault(place, []).append(name)
    found = []
    for (row, column), names in sorted(held.items()):
        layer = grid.rows[row]
        where = f"layer {layer}" if layer.isdigit() else layer
        projection = " ".join(grid.columns[column].split())
        costs = round(sum(unit_costs[name] for name in names) / len(names))
        own = (told or {}).get(names[0], "") if len(names) == 1 else ""
        found.append(MapCell(row, column, f"{where}, {projection}", tuple(names), costs, own))
    return tuple(found)


def state_of(cells: Sequence[MapCell], values: Mapping[str, float]) -> list[float]:
    """Sums of values over the modules of each cell."""
    return [float(sum(values.get(name, 0.0) for name in cell.modules)) for cell in cells]


def rank_map(
    key: str, plans: Sequence[tuple[str, Mapping[str, int]]], costs: Mapping[str, int], **said: Any
) -> PageMap:
    """A map of ranks; with several states it has a slider."""
    grid = module_grid(costs)
    cells = cells_of(grid, costs)
    states = np.array([state_of(cells, {n: float(r) for n, r in ranks.items()}) for _, ranks in plans])
    return PageMap(
        key, kind="rank", grid=grid, cells=cells, states=states, labels=tuple(label for label, _ in plans), **said
    )


def importance_map(
    key: str, plan: RankPlan, importance: Mapping[str, float], errors: Mapping[str, float], **said: Any
) -> PageMap:
    """A map of importance in percent of all, with standard errors where they are known."""
    grid = module_grid(plan.unit_costs)
    told = {
        name: (f" ± {errors[name]:.2g} (standard error)" if name in errors else "") + f"; rank {plan.ranks[name]}"
        for name in plan.ranks
    }
    cells = cells_of(grid, plan.unit_costs, told)
    states = np.array([state_of(cells, importance)])
    decimals = 1 if float(np.abs(states).mean()) >= 0.1 else 2
    return PageMap(key, kind="importance", grid=grid, cells=cells, states=states, decimals=decimals, **said)
