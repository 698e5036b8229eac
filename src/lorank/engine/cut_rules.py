"""How many units of each module a cut during training keeps: budget curve, costs and limits; no model and no state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorank.allocation.budgeted import allocate
from lorank.allocation.schedule import CutSchedule, budget_at
from lorank.allocation.top_b import EQUAL, top_ranks, warn_if_equal
from lorank.budget import Budget
from lorank.engine.options import Choices, ScoringSetChoices
from lorank.engine.smoothing import updates_needed
from lorank.errors import AllocationError
from lorank.module_names import ends_with
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores


@dataclass(frozen=True)
class InitialAdapter:
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

    initial: InitialAdapter
    options: Choices
    schedule: CutSchedule

    def ranks_at(self, step: int, alive: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Ranks of a cut on the way."""
        # Rounded down as in AdaLoRA's code; what is left of a binary fraction must not cost a whole unit.
        return top_ranks(alive, self._curve()[0], math.floor(self.budget_at(step) + 1e-9), **self._walk())

    def last_plan(self, alive: Mapping[str, np.ndarray]) -> RankPlan:
        """The plan of the last cut, inside every limit.

        A budget in ranks says how many units there are, and what they cost follows from which they are; if it was asked
        for in parameters, it is the limit besides.
        """
        if self.options.cut.budget_in == "ranks":
            if not self.initial.provenance.get(EQUAL):
                warn_if_equal(alive)
            costs, _, final = self._curve()
            within = (self.initial.costs, self.initial.parameters) if self._in_parameters else None
            return self.plan(top_ranks(alive, costs, final, within=within, **self._walk()))
        scores = ImportanceScores(alive, self.initial.costs, None, self.initial.provenance)
        return allocate(scores, self.initial.parameters, scale=self.initial.scale, **self.initial.limits)

    def budget_at(self, step: int) -> float:
        """What the curve leaves at a step, in its own costs."""
        _, start, final = self._curve()
        first, last, curve = self.schedule.first, self.schedule.last, self.options.cut.curve
        return budget_at(step, start=start, final=final, first_step=first, last_step=last, curve=curve)

    def plan(self, ranks: Mapping[str, int], provenance: Mapping[str, Any] | None = None) -> RankPlan:
        """The plan of these ranks."""
        initial, made = self.initial, provenance or self.initial.provenance
        if self.options.cut.budget_in != "ranks" or self._in_parameters:
            return RankPlan(ranks, initial.costs, initial.budget, initial.parameters, initial.scale, made)
        # What was asked for is units; what they cost follows from which they are.
        spent, units = sum(rank * initial.costs[name] for name, rank in ranks.items()), math.floor(self._curve()[2])
        parameters = max(initial.parameters, spent)
        return RankPlan(ranks, initial.costs, initial.budget, parameters, initial.scale, made, budget_units=units)

    def scalars(
        self, step: int, ranks: Mapping[str, int], before: Mapping[str, int], alive: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """What is logged of a cut: `ranks` that it left, `before` those that were logged last, `alive` the scores."""
        flat = np.concatenate(list(alive.values()))
        return {
            "rank_allocation/step": step,
            "rank_allocation/parameters": sum(rank * self.initial.costs[name] for name, rank in ranks.items()),
            "rank_allocation/budget": self.budget_at(step),
            "rank_allocation/final_budget": self.initial.parameters,
            "rank_allocation/total_rank": sum(ranks.values()),
            "rank_allocation/modules_changed": sum(rank != before[name] for name, rank in ranks.items()),
            "rank_allocation/score_mean": float(flat.mean()),
            "rank_allocation/score_max": float(flat.max()),
            "rank_allocation/score_median": float(np.median(flat)),
        }

    @property
    def _in_parameters(self) -> bool:
        return Budget.parse(self.initial.budget).kind in ("parameters", "base fraction")

    def _curve(self) -> tuple[Mapping[str, float], float, float]:
        """Costs of a unit of each module, and the budgets that the curve goes from and to."""
        initial = self.initial
        start: float = sum(initial.costs[name] * rank for name, rank in initial.ranks.items())
        if self.options.cut.budget_in == "parameters":
            return initial.costs, start, initial.parameters
        weights = {name: _weight(name, self.options.cut.cost_weights) for name in initial.costs}
        weight = sum(weights[name] * rank for name, rank in initial.ranks.items())
        # The parameters of rank=144 were rounded down by less than one; nothing that costs below 1/100 is lost by this.
        return weights, weight, math.floor(100 * (initial.parameters + 1) * weight / start) / 100

    def _walk(self) -> dict[str, Any]:
        limits = self.initial.limits
        return {"min_rank": limits["min_rank"], "rank_by": limits["rank_by"], "fill": self.options.cut.fill}


def _weight(name: str, weights: Mapping[str, float]) -> float:
    return next((weight for end, weight in weights.items() if ends_with(name, end)), 1.0)


def schedule_of(options: Choices, steps: int, steps_per_epoch: int) -> tuple[CutSchedule, int]:
    """When a run of so many optimizer steps cuts, and how many mini-batches make a window.

    Raises:
        AllocationError: no room to prune in, or no score before the last cut.

    """
    if isinstance(options, ScoringSetChoices):
        return _schedule_of_stage(options, steps), 1
    schedule = CutSchedule.of_run(steps, options.cut.begin, options.cut.end, options.cut.interval)
    every, asked = options.measure.every, options.smooth.window
    if isinstance(asked, str):
        window = max(1, steps_per_epoch // every)
    else:
        window = asked if isinstance(asked, int) else max(1, round(asked * steps / every))
    first = updates_needed(options.smooth.score) * window * every
    if first >= schedule.last:
        said = f"{window} ({asked})" if window != asked else str(window)
        raise AllocationError(
            f"the last cut is at step {schedule.last} of {steps}, but the first scores need {first} steps (every {every}, "
            f"window {said}, score {options.smooth.score}); lower every or window, raise end, or train longer"
        )
    return schedule, window


def _schedule_of_stage(options: ScoringSetChoices, steps: int) -> CutSchedule:
    """Scores count after the warm-up; the last cut is at the last step."""
    first = int(options.measure.warmup * steps)
    if options.measure.when == "during" and (steps - first) // options.measure.every < 1:
        raise AllocationError(
            f"the stage has {steps} steps, of which warmup {options.measure.warmup} and every {options.measure.every} leave none "
            "to score at; lower them or train longer"
        )
    interval = (
        options.cut.interval if isinstance(options.cut.interval, int) else max(1, round(options.cut.interval * steps))
    )
    return CutSchedule(first, steps, steps if options.cut.curve == "one-shot" else interval)
