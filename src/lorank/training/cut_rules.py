"""How many units of each module a cut during training keeps: budget curve, costs and limits; no model and no state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorank.allocation.schedule import CutSchedule, budget_at
from lorank.allocation.top_b import allocate, top_ranks
from lorank.budget import Budget
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.training.pruning import PruningOptions


@dataclass(frozen=True)
class Ground:
    """What is known before training: the adapter as it starts, and what its units may cost.

    Attributes:
        ranks: module name -> initial rank.
        costs: module name -> parameters of one unit, `d_in + d_out`.
        budget: as it was asked for.
        parameters: what it means.
        limits: `max_rank`, `min_rank`, `multiple_of`, `rank_by`, `scope` of the last cut.
        scale: `alpha / r` of the finished adapter.
        provenance: of scores and plan.

    """

    ranks: Mapping[str, int]
    costs: Mapping[str, int]
    budget: str
    parameters: int
    limits: Mapping[str, Any]
    scale: float
    provenance: Mapping[str, Any]


@dataclass(frozen=True)
class CutRules:
    """From scores of the units that are left to ranks, at any step."""

    ground: Ground
    options: PruningOptions
    schedule: CutSchedule

    def ranks_at(self, step: int, alive: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Ranks of a cut on the way."""
        costs, start, final = self._curve()
        first, last, curve = self.schedule.first, self.schedule.last, self.options.curve
        budget = budget_at(step, start=start, final=final, first_step=first, last_step=last, curve=curve)
        # Rounded down as in AdaLoRA's code; what is left of a binary fraction must not cost a whole unit.
        return top_ranks(alive, costs, math.floor(budget + 1e-9), **self._walk())

    def last_plan(self, alive: Mapping[str, np.ndarray]) -> RankPlan:
        """The plan of the last cut, inside every limit.

        A budget in ranks says how many units there are, and what they cost follows from which they are; if it was asked
        for in parameters, it is the limit besides.
        """
        if self.options.budget_in == "ranks":
            costs, _, final = self._curve()
            ranks = top_ranks(alive, costs, final, **self._walk())
            while Budget.parse(self.ground.budget).kind in ("parameters", "base fraction") and (
                sum(rank * self.ground.costs[name] for name, rank in ranks.items()) > self.ground.parameters
            ):
                final -= 1
                ranks = top_ranks(alive, costs, final, **self._walk())
            return self.plan(ranks)
        scores = ImportanceScores(alive, self.ground.costs, None, self.ground.provenance)
        return allocate(scores, self.ground.parameters, scale=self.ground.scale, **self.ground.limits)

    def plan(self, ranks: Mapping[str, int], provenance: Mapping[str, Any] | None = None) -> RankPlan:
        """The plan of these ranks."""
        ground = self.ground
        spent = sum(rank * ground.costs[name] for name, rank in ranks.items())
        parameters = max(ground.parameters, spent) if self.options.budget_in == "ranks" else ground.parameters
        return RankPlan(ranks, ground.costs, ground.budget, parameters, ground.scale, provenance or ground.provenance)

    def _curve(self) -> tuple[Mapping[str, float], float, float]:
        """Costs of a unit of each module, and the budgets that the curve goes from and to."""
        ground = self.ground
        start: float = sum(ground.costs[name] * rank for name, rank in ground.ranks.items())
        if self.options.budget_in == "parameters":
            return ground.costs, start, ground.parameters
        weights = {name: _weight(name, self.options.cost_weights) for name in ground.costs}
        weight = sum(weights[name] * rank for name, rank in ground.ranks.items())
        # The parameters of rank=144 were rounded down by less than one; nothing that costs below 1/100 is lost by this.
        return weights, weight, math.floor(100 * (ground.parameters + 1) * weight / start) / 100

    def _walk(self) -> dict[str, Any]:
        limits = self.ground.limits
        return {"min_rank": limits["min_rank"], "rank_by": limits["rank_by"], "fill": self.options.fill}


def _weight(name: str, weights: Mapping[str, float]) -> float:
    return next((weight for end, weight in weights.items() if name == end or name.endswith(f".{end}")), 1.0)
