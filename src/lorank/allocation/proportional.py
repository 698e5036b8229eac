"""Ranks in proportion to the scores of modules, with caps, within an exact parameter budget (Sensitivity-LoRA)."""

import heapq
from collections.abc import Mapping

from lorank.errors import AllocationError
from lorank.module_names import natural_order


def proportional_ranks(
    scores: Mapping[str, float],
    costs: Mapping[str, int],
    budget: int,
    max_ranks: Mapping[str, int],
    *,
    min_rank: int = 0,
    multiple_of: int = 1,
) -> dict[str, int]:
    """Largest remainder: `r_m` as near as whole ranks allow to `clip(t S_m, min_rank, max_rank_m)`, `Σ r_m c_m <= budget`.

    `t` is the factor at which the clipped shares cost the budget, so what a cap cuts off goes to the other modules in
    proportion to their scores. Every share is rounded down to a multiple of `multiple_of`; then the module that is furthest
    below its share gets the next block, again and again, while one fits. So the plan never spends more than the budget, no
    block more would fit, and it depends neither on the order of the modules nor on the unit of the scores. Ties go to the
    module that comes first by name. As with every largest-remainder rule, a larger budget can cost a module a block.

    Args:
        scores: module name -> score; below zero counts as zero.
        costs: module name -> parameters of one unit of rank.
        budget: parameters.
        max_ranks: module name -> upper limit.
        min_rank: lower limit, which the budget must pay for; a module whose upper limit is below it gets that.
        multiple_of: every rank is a multiple of this.

    Raises:
        AllocationError: no score is above zero.

    """
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
    waiting = [(worth[name] <= 0, ranks[name] - shares[name], natural_order(name), name) for name in ranks]
    heapq.heapify(waiting)
    while waiting:
        worthless, _, order, name = heapq.heappop(waiting)
        cost = costs[name] * multiple_of
        if cost > left or ranks[name] + multiple_of > caps[name]:
            continue
        ranks[name] += multiple_of
        left -= cost
        heapq.heappush(waiting, (worthless, ranks[name] - shares[name], order, name))
    return ranks


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
