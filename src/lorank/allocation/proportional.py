"""Ranks in proportion to the scores of modules, with caps, within an exact parameter budget (Sensitivity-LoRA)."""

import operator
from collections.abc import Mapping

import numpy as np

from lorank.allocation.walk import charge, places_by_name, taken
from lorank.errors import AllocationError


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

    The same as `proportional_ranks_plain`.

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
    names = tuple(scores)
    in_order = {name: costs[name] for name in names}
    rule = ProportionalRule(in_order, budget, max_ranks, min_rank=min_rank, multiple_of=multiple_of)
    return dict(zip(names, rule.ranks(np.array([scores[name] for name in names])).tolist(), strict=True))


class ProportionalRule:
    """`proportional_ranks` for any scores of the same modules: all that does not depend on the scores is worked out once."""

    def __init__(
        self,
        costs: Mapping[str, int],
        budget: int,
        max_ranks: Mapping[str, int],
        *,
        min_rank: int = 0,
        multiple_of: int = 1,
    ) -> None:
        """See `proportional_ranks`; the order of the modules is that of `costs`."""
        self.budget, self.multiple_of, self.prices = budget, multiple_of, list(costs.values())
        self.order = places_by_name(tuple(costs))
        self.blocks, _ = charge([cost * multiple_of for cost in self.prices], budget)
        self.costs = np.array(self.prices, dtype=np.float64)
        self.caps = np.array([max_ranks[name] // multiple_of * multiple_of for name in costs], dtype=np.int64)
        self.floors = np.minimum(min_rank, self.caps)
        self.least, self.most = self._cost(self.floors), self._cost(self.caps)

    def ranks(self, scores: np.ndarray) -> np.ndarray:
        """Scores `(modules,)` -> ranks `(modules,)`.

        Raises:
            AllocationError: no score is above zero.

        """
        worth = np.maximum(0.0, scores)
        if worth.max() <= 0:
            raise AllocationError("no module has a score above zero, so there are no proportions; score again")
        with np.errstate(all="ignore"):  # a score that is next to nothing reaches its cap at infinity
            shares = self._shares(worth / worth.max())
        whole = np.floor(shares).astype(np.int64) // self.multiple_of * self.multiple_of
        ranks = np.minimum(self.caps, np.maximum(self.floors, whole))
        left: float = self.budget - self._cost(ranks)
        for waiting in (np.flatnonzero(worth > 0), np.flatnonzero(worth <= 0)):
            # The next block of each module; then, of those that got it, the one behind it; and so on.
            while len(waiting):
                waiting = waiting[ranks[waiting] + self.multiple_of <= self.caps[waiting]]
                furthest = np.lexsort((self.order[waiting], ranks[waiting] - shares[waiting]))
                waiting = waiting[furthest]
                paid, left = taken(waiting, (self.blocks, left))
                waiting = waiting[paid]
                ranks[waiting] += self.multiple_of
        return ranks

    def _cost(self, ranks: np.ndarray) -> int:
        return sum(map(operator.mul, ranks.tolist(), self.prices))

    def _shares(self, worth: np.ndarray) -> np.ndarray:
        """`clip(t S_m, floor_m, cap_m)` with the `t` at which they cost the budget; the cost is piecewise linear in t."""
        if self.most <= self.budget:
            return self.caps.astype(np.float64)
        # Where a module leaves its floor and where it reaches its cap: between two such points the cost is a straight line.
        free = (worth > 0) & (self.floors < self.caps)
        at = np.concatenate([self.floors[free] / worth[free], self.caps[free] / worth[free]])
        change = self.costs[free] * worth[free]
        change = np.concatenate([change, -change])
        sequence = np.lexsort((change, at))
        at = np.concatenate([[0.0], at[sequence]])
        slopes = np.cumsum(np.concatenate([[0.0], change[sequence]]))
        spent = np.cumsum(np.concatenate([[float(self.least)], slopes[:-1] * np.diff(at)]))
        over = np.flatnonzero(spent[1:] >= self.budget)
        last = over[0] if len(over) else len(at) - 1
        t = at[last] + (self.budget - spent[last]) / slopes[last] if slopes[last] > 0 else at[last]
        return np.fmin(self.caps, np.fmax(self.floors, t * worth))
