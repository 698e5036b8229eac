"""The cut: keep the most important units of rank that a parameter budget pays for."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lorank.errors import LorankWarning
from lorank.module_names import natural_order, places
from lorank.scores import ImportanceScores

RankBy = Literal["score", "score-per-parameter"]
Scope = Literal["global", "layer"]
EQUAL = "equal_scores"  # in the provenance of scores that are meant to be equal


def top_b_ranks(
    scores: ImportanceScores,
    parameters: int,
    *,
    max_rank: int | None = None,
    min_rank: int = 0,
    multiple_of: int = 1,
    rank_by: RankBy = "score",
    scope: Scope = "global",
) -> dict[str, int]:
    """Ranks of the most important units that `parameters` pay for: the walk that `lorank.allocate` describes."""
    costs = dict(scores.unit_costs)
    blocks = _blocks(scores.scores, costs, max_rank, min_rank, multiple_of, rank_by)
    ranks = {name: floor_of(min_rank, len(values), multiple_of) for name, values in scores.scores.items()}
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    if scope == "layer":
        whole = sum(cost for *_, cost in blocks)
        layer_of = {name: (place.stack, place.layer) for name, place in places(costs).items()}
        for layer in sorted(set(layer_of.values()), key=str):
            own = [block for block in blocks if layer_of[block[0]] == layer]
            share = int((parameters - spent) * sum(cost for *_, cost in own) // whole) if whole else 0
            _take(own, ranks, share, multiple_of)
    left = parameters - sum(rank * costs[name] for name, rank in ranks.items())
    # What a layer's own share already took is the best part of it, so the walk goes on behind it.
    _take([b for b in blocks if b[1] >= ranks[b[0]]], ranks, left, multiple_of)
    return ranks


def top_ranks(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, float],
    budget: float,
    *,
    min_rank: int = 0,
    rank_by: RankBy = "score",
    fill: bool = True,
    within: tuple[Mapping[str, float], float] | None = None,
) -> dict[str, int]:
    """Ranks of one cut while training goes on: the walk of `allocate` over whatever costs the budget is counted in.

    Args:
        scores: module name -> scores of its units that are left.
        costs: module name -> cost of a unit: parameters, or 1 for a budget in ranks, or any weight above zero.
        budget: what the kept units may cost.
        min_rank: every module keeps at least this, or all that it has.
        rank_by: as `allocate`.
        fill: go on behind the first unit that does not fit, so that no unit more would fit; False stops there, as the
            published codes do, which drop the least important until the rest fits.
        within: other costs and another budget besides; a unit that it does not pay for is passed over.

    """
    ranks = {name: min(min_rank, len(values)) for name, values in scores.items()}
    left = budget - sum(rank * costs[name] for name, rank in ranks.items())
    besides, beside_left = within or (dict.fromkeys(costs, 0.0), 0.0)
    beside_left -= sum(rank * besides[name] for name, rank in ranks.items())
    for name, _, cost in _blocks(scores, costs, None, min_rank, 1, rank_by):
        if cost > left and not fill:
            break
        if cost <= left and besides[name] <= beside_left:
            ranks[name] += 1
            left -= cost
            beside_left -= besides[name]
    return ranks


def best_units(scores: np.ndarray, rank: int) -> np.ndarray:
    """Positions of the `rank` best units of a module, ascending; of equal ones the lower."""
    return np.sort(np.argsort(-scores, kind="stable")[:rank])


# A block of `multiple_of` units: module, rank of the module before the block, cost.
_Block = tuple[str, int, float]


def _blocks(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, float],
    max_rank: int | None,
    min_rank: int,
    multiple_of: int,
    rank_by: RankBy,
) -> list[_Block]:
    """All blocks above `min_rank`, most important first."""
    found: list[tuple[float, int, Any, str, float]] = []
    for name, values in scores.items():
        best_first = np.sort(values)[::-1]
        top = len(best_first) if max_rank is None else min(max_rank, len(best_first))
        cost, order = costs[name], natural_order(name)
        for start in range(min_rank, top - multiple_of + 1, multiple_of):
            worth = float(best_first[start : start + multiple_of].mean())
            if rank_by == "score-per-parameter":
                worth = worth / cost if worth > 0 else worth * cost  # a loss is no smaller for costing more
            found.append((-worth, start, order, name, cost * multiple_of))
    found.sort()
    return [(name, start, cost) for _, start, _, name, cost in found]


def _take(blocks: list[_Block], ranks: dict[str, int], budget: float, multiple_of: int) -> None:
    """Walk the blocks in order; take each that still fits. A module's blocks cost the same, so none is skipped over."""
    for name, _, cost in blocks:
        if cost <= budget:
            ranks[name] += multiple_of
            budget -= cost


def floor_of(min_rank: int, most: int, multiple_of: int = 1) -> int:
    """The least rank of a module that can have `most`: a module that cannot have `min_rank` gets all that it can."""
    return min(min_rank, most // multiple_of * multiple_of)


def uniform_scores(
    costs: Mapping[str, int], units: int | Mapping[str, int], provenance: Mapping[str, Any] | None = None
) -> ImportanceScores:
    """Equal scores: what uniform LoRA believes. `allocate` turns them into equal ranks, remainder from the first layer.

    `units` are those of every module, or of each.
    """
    of = dict.fromkeys(costs, units) if isinstance(units, int) else units
    return ImportanceScores(
        {name: np.ones(of[name]) for name in costs}, costs, None, {**(provenance or {}), EQUAL: True}
    )


def warn_if_equal(scores: Mapping[str, np.ndarray]) -> None:
    """Say so where every score of several modules is the same: the ranks are then decided by the order of the modules."""
    every = np.concatenate([np.ravel(values) for values in scores.values()])
    if len(scores) > 1 and len(every) and (every == every[0]).all():
        warnings.warn(
            f"every score is equal ({every[0]:g}), so the plan says nothing about the layers; look at what was scored, or use "
            "method lora for equal ranks",
            LorankWarning,
            stacklevel=3,
        )
