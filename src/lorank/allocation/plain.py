"""The rules of allocation as loops, one block at a time: the specification of the forms in use, which find the same at once.

Arguments and results are those of the functions without `_plain`.
"""

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorank.allocation.top_b import RankBy, Scope, floor_of
from lorank.errors import AllocationError
from lorank.module_names import natural_order, places
from lorank.scores import ImportanceScores


def top_b_ranks_plain(
    scores: ImportanceScores,
    budget: int,
    *,
    price: Mapping[str, int] | None = None,
    max_rank: int | None = None,
    min_rank: int = 0,
    multiple_of: int = 1,
    rank_by: RankBy = "score",
    scope: Scope = "global",
) -> dict[str, int]:
    """See `lorank.allocation.top_b.top_b_ranks`: the walk that `lorank.allocate` describes."""
    costs = dict(price or scores.unit_costs)
    by_worth = _blocks(scores.scores, scores.unit_costs, max_rank, min_rank, multiple_of, rank_by)
    blocks: list[_Block] = [(name, start, costs[name] * multiple_of) for name, start, _ in by_worth]
    ranks = {name: floor_of(min_rank, len(values), multiple_of) for name, values in scores.scores.items()}
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    if scope == "layer":
        whole = sum(cost for *_, cost in blocks)
        layer_of = {name: (place.stack, place.layer) for name, place in places(costs).items()}
        for layer in sorted(set(layer_of.values()), key=str):
            own = [block for block in blocks if layer_of[block[0]] == layer]
            share = int((budget - spent) * sum(cost for *_, cost in own) // whole) if whole else 0
            _take(own, ranks, share, multiple_of)
    left = budget - sum(rank * costs[name] for name, rank in ranks.items())
    # What a layer's own share already took is the best part of it, so the walk goes on behind it.
    _take([b for b in blocks if b[1] >= ranks[b[0]]], ranks, left, multiple_of)
    return ranks


def top_ranks_plain(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, int],
    budget: float,
    *,
    price: Mapping[str, float] | None = None,
    min_rank: int = 0,
    rank_by: RankBy = "score",
    fill: bool = True,
) -> dict[str, int]:
    """See `lorank.allocation.top_b.top_ranks`: the walk of one cut while training goes on."""
    of = price or costs
    ranks = {name: min(min_rank, len(values)) for name, values in scores.items()}
    left = budget - sum(rank * of[name] for name, rank in ranks.items())
    for name, *_ in _blocks(scores, costs, None, min_rank, 1, rank_by):
        if of[name] > left and not fill:
            break
        if of[name] <= left:
            ranks[name] += 1
            left -= of[name]
    return ranks


def proportional_ranks_plain(
    scores: Mapping[str, float],
    costs: Mapping[str, int],
    budget: int,
    max_ranks: Mapping[str, int],
    *,
    min_rank: int = 0,
    multiple_of: int = 1,
) -> dict[str, int]:
    """See `lorank.allocation.proportional.proportional_ranks`."""
    caps = {name: limit // multiple_of * multiple_of for name, limit in max_ranks.items()}
    floors = {name: min(min_rank, cap) for name, cap in caps.items()}
    worth = {name: max(0.0, score) for name, score in scores.items()}
    highest = max(worth.values())
    if highest <= 0:
        raise AllocationError("no module has a score above zero, so there are no proportions; score again")
    shares = _shares({name: value / highest for name, value in worth.items()}, costs, budget, caps, floors)
    ranks = {
        name: min(caps[name], max(floors[name], int(share) // multiple_of * multiple_of))
        for name, share in shares.items()
    }
    left = budget - sum(rank * costs[name] for name, rank in ranks.items())
    # Those furthest below their share first, worthless ones last. What cannot be paid for now cannot be later either.
    waiting = [(worth[name] <= 0, 0, ranks[name] - shares[name], natural_order(name), name) for name in ranks]
    heapq.heapify(waiting)
    while waiting:
        worthless, got, _, order, name = heapq.heappop(waiting)
        cost = costs[name] * multiple_of
        if cost > left or ranks[name] + multiple_of > caps[name]:
            continue
        ranks[name] += multiple_of
        left -= cost
        heapq.heappush(waiting, (worthless, got + 1, ranks[name] - shares[name], order, name))
    return ranks


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


def _shares(
    worth: Mapping[str, float],
    costs: Mapping[str, int],
    budget: float,
    caps: Mapping[str, int],
    floors: Mapping[str, int],
) -> dict[str, float]:
    """`clip(t S_m, floor_m, cap_m)` with the `t` at which they cost the budget, exactly: the cost is piecewise linear in t."""
    if sum(cap * costs[name] for name, cap in caps.items()) <= budget:
        return {name: float(cap) for name, cap in caps.items()}
    # Where a module leaves its floor and where it reaches its cap: between two such points the cost is a straight line.
    events = [(floors[name] / s, costs[name] * s) for name, s in worth.items() if s > 0 and floors[name] < caps[name]]
    events += [(caps[name] / s, -costs[name] * s) for name, s in worth.items() if s > 0 and floors[name] < caps[name]]
    spent, slope, at = float(sum(floors[name] * costs[name] for name in worth)), 0.0, 0.0
    for t, change in sorted(events):
        if spent + slope * (t - at) >= budget:
            break
        spent += slope * (t - at)
        slope, at = slope + change, t
    t = at + (budget - spent) / slope if slope > 0 else at
    return {name: min(float(caps[name]), max(float(floors[name]), t * score)) for name, score in worth.items()}
