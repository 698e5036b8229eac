"""Modules laid out as layers x projections: what tables and pictures share."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorank.module_names import Place, expert_of, places, stack_label
from lorank.plan import RankPlan


@dataclass(frozen=True)
class ModuleGrid:
    """Where every module stands in a map.

    Attributes:
        rows: names of the layers, in the model's order; with several stacks (encoder and decoder) they say which.
        columns: names of the projections.
        cells: module name -> row and column; the routed experts of a layer share the cells of their projections.
        starts: rows in which a stack begins, the first one's left out.
        grouped: whether there are cells of several experts.

    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[str, tuple[int, int]]
    starts: tuple[int, ...]
    grouped: bool = False

    def means(self, values: Mapping[str, float]) -> np.ndarray:
        """`(rows, columns)`: mean over the modules of each cell, NaN where there is none."""
        return self.sums(values) / self.sums(dict.fromkeys(values, 1))

    def sums(self, values: Mapping[str, float]) -> np.ndarray:
        """`(rows, columns)`: sum over the modules of each cell, NaN where there is none."""
        found = np.full((len(self.rows), len(self.columns)), np.nan)
        for name, value in values.items():
            cell = self.cells[name]
            found[cell] = value + (0 if np.isnan(found[cell]) else found[cell])
        return found


def module_grid(names: Iterable[str], *, group_experts: bool = True) -> ModuleGrid:
    """Lay modules out; `group_experts` puts the routed experts of a layer together, as one of many would be too small."""
    names = list(names)
    experts = {name: found[0] for name in names if group_experts and (found := expert_of(name))}
    placed = _places_in_columns(dict.fromkeys(experts.get(name, name) for name in names))
    counts = Counter(experts.values())
    most = {place.projection: 0 for place in placed.values()}
    for group, place in placed.items():
        most[place.projection] = max(most[place.projection], counts[group])
    rows = list(dict.fromkeys((place.stack, place.layer) for place in placed.values()))
    held: dict[tuple[str, int | None], list[str]] = {row: [] for row in rows}
    for place in placed.values():
        held[place.stack, place.layer].append(place.projection)
    # In the order of the fullest layer: of an adapter that has lost modules, the first layer may name few of them.
    columns = list(dict.fromkeys(name for row in sorted(rows, key=lambda row: -len(held[row])) for name in held[row]))
    row_of = {row: number for number, row in enumerate(rows)}
    column_of = {name: number for number, name in enumerate(columns)}
    cells = {}
    for name in names:
        place = placed[experts.get(name, name)]
        cells[name] = row_of[place.stack, place.layer], column_of[place.projection]
    several = len({stack for stack, _ in rows}) > 1
    return ModuleGrid(
        tuple(_row_name(stack, layer, several) for stack, layer in rows),
        tuple(f"{name}\n{most[name]} experts" if most[name] else name for name in columns),
        cells,
        tuple(number for number in range(1, len(rows)) if rows[number][0] != rows[number - 1][0]),
        bool(experts),
    )


def _places_in_columns(names: Iterable[str]) -> dict[str, Place]:
    """Places whose short names are alike in all stacks: an encoder's and a decoder's `self_attn.q_proj` are one column."""
    placed = places(names)
    alike = {name: f"stack{name[len(place.stack) :]}" for name, place in placed.items() if place.layer is not None}
    columns = places(alike.values())
    return {
        name: Place(place.stack, place.layer, columns[alike[name]].projection) if name in alike else place
        for name, place in placed.items()
    }


def grid_of(values: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], list[list[Any]]]:
    """Names of the layers, names of the projections, and the modules' values in that grid, None where there is none."""
    grid = module_grid(values, group_experts=False)
    cells: list[list[Any]] = [[None] * len(grid.columns) for _ in grid.rows]
    for name, (row, column) in grid.cells.items():
        cells[row][column] = values[name]
    return grid.rows, grid.columns, cells


@dataclass(frozen=True)
class RankGroup:
    """Modules that belong together.

    Attributes:
        name: of the group.
        modules: how many they are, those of rank 0 too.
        mean_rank: sum of their ranks over their number.
        share: of the plan's parameters, 0..1.

    """

    name: str
    modules: int
    mean_rank: float
    share: float


def layer_groups(plan: RankPlan, parts: int = 3) -> list[RankGroup]:
    """Mean rank of the lower, middle and upper layers (I-LoRA, section 5.7), of every stack apart.

    The layers of a stack are divided into `parts` groups whose sizes differ by one at most. Modules outside of a stack of
    layers are in none.
    """
    placed = places(plan.ranks)
    stacks = list(dict.fromkeys(place.stack for place in placed.values() if place.layer is not None))
    groups = []
    for stack in stacks:
        layers = sorted({place.layer for place in placed.values() if place.stack == stack and place.layer is not None})
        for number, part in enumerate(np.array_split(np.array(layers), min(parts, len(layers)))):
            inside = set(part.tolist())
            names = [name for name, place in placed.items() if place.stack == stack and place.layer in inside]
            label = f"{stack_label(stack)} " if len(stacks) > 1 else ""
            groups.append(_group(plan, f"{label}{_layers(part, number, min(parts, len(layers)))}", names))
    return groups


def projection_groups(plan: RankPlan) -> list[RankGroup]:
    """Mean rank of each projection over all layers (I-LoRA, section 5.7); routed experts are counted together."""
    grid = module_grid(plan.ranks)
    return [
        _group(plan, " ".join(column.split()), [name for name, cell in grid.cells.items() if cell[1] == number])
        for number, column in enumerate(grid.columns)
    ]


def _layers(part: np.ndarray, number: int, parts: int) -> str:
    first, last = int(part[0]), int(part[-1])
    layers = f"layers {first}-{last}" if last > first else f"layer {first}"
    return f"{('lower', 'middle', 'upper')[number]} third: {layers}" if parts == 3 else layers


def _group(plan: RankPlan, name: str, modules: list[str]) -> RankGroup:
    total = sum(plan.ranks[module] for module in modules)
    spent = sum(plan.ranks[module] * plan.unit_costs[module] for module in modules)
    return RankGroup(name, len(modules), total / len(modules), spent / plan.spent if plan.spent else 0.0)


def _row_name(stack: str, layer: int | None, several: bool) -> str:
    if layer is None:
        return stack or "model"
    return f"{stack_label(stack)} {layer}" if several else str(layer)
