"""How many units of each module a cut during training keeps: budget curve, costs and limits; no model and no state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np

from lorank.allocation.bounds import bounded_limits
from lorank.allocation.budgeted import allocate
from lorank.allocation.schedule import CutSchedule, budget_at
from lorank.allocation.top_b import EQUAL, top_ranks, warn_if_equal
from lorank.budget import Budget
from lorank.engine.options import Choices, ScoringSetChoices
from lorank.engine.smoothing import updates_needed
from lorank.errors import AllocationError
from lorank.module_names import ends_with, is_attention
from lorank.plan import WEIGHTED, RankPlan
from lorank.scores import ImportanceScores


@dataclass(frozen=True)
class InitialAdapter:
    """What is known before training: the adapter as it starts, and what its units may cost.

    Attributes:
        ranks: module name -> initial rank.
        costs: module name -> parameters of one unit, `d_in + d_out`.
        budget: as it was asked for.
        parameters: what it means; of one that counts units, what these cost at the mean.
        limits: `max_rank`, `min_rank`, `multiple_of`, `rank_by`, `scope`, `within` of the last cut.
        scale: `alpha / r` of the finished adapter.
        provenance: of scores and plan.
        weights: module name -> what one unit takes from a budget in ranks, where that is not 1 (IGU-LoRA's code).

    """

    ranks: Mapping[str, int]
    costs: Mapping[str, int]
    budget: str
    parameters: int
    limits: Mapping[str, Any]
    scale: float
    provenance: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def asked(self) -> Budget:
        """The budget, read; one that counts units as their number."""
        return Budget.parse(self.budget).of_units(sum(self.ranks.values()))

    @property
    def price(self) -> dict[str, float]:
        """Module name -> what one unit takes from a budget in ranks."""
        return {name: self.weights.get(name, 1.0) for name in self.costs}

    @property
    def weighted(self) -> float:
        """What all initial units take from a budget in ranks."""
        return total(self.ranks, self.price)


@dataclass(frozen=True)
class CutRules:
    """From scores of the units that are left to ranks, at any step."""

    initial: InitialAdapter
    options: Choices
    schedule: CutSchedule

    def ranks_at(self, step: int, alive: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Ranks of a cut on the way."""
        # Rounded down as in AdaLoRA's code; what is left of a binary fraction must not cost a whole unit.
        return self._walk(alive, math.floor(self.budget_at(step) + 1e-9), self._curve()[0])

    def last_plan(self, alive: Mapping[str, np.ndarray]) -> RankPlan:
        """The plan of the last cut, inside every limit.

        Asked for in parameters it spends parameters, whatever the cuts before it counted. Asked for as a share of the initial
        units, or in ranks where the curve counts these, it keeps so many units, and what they cost follows from which they are.
        """
        initial = self.initial
        if self.options.cut.fill and not self._in_ranks:
            scores, asked = ImportanceScores(alive, initial.costs, None, initial.provenance), initial.asked
            budget = asked if asked.counts_units else initial.parameters
            return allocate(scores, budget, scale=initial.scale, **initial.limits)
        if not initial.provenance.get(EQUAL):
            warn_if_equal(alive)
        price, _, final = self._curve() if self._counts_units else self._parameters()
        return self.plan(self._walk(alive, final, price))

    @property
    def pays_for_a_unit(self) -> bool:
        """Whether the last cut can keep a unit, if the cheapest is the most important."""
        price, _, final = self._curve()
        return final >= min(price.values())

    def budget_at(self, step: int) -> float:
        """What the curve leaves at a step, in its own costs."""
        _, start, final = self._curve()
        first, last, curve = self.schedule.first, self.schedule.last, self.options.cut.curve
        return budget_at(step, start=start, final=final, first_step=first, last_step=last, curve=curve)

    def plan(self, ranks: Mapping[str, int], provenance: Mapping[str, Any] | None = None) -> RankPlan:
        """The plan of these ranks."""
        initial, made = self.initial, provenance or self.initial.provenance
        if not self._counts_units:
            return RankPlan(ranks, initial.costs, initial.budget, initial.parameters, initial.scale, made)
        # What was asked for is units; what they cost follows from which they are.
        spent, units = total(ranks, initial.costs), math.floor(self._curve()[2])
        if self._in_ranks and initial.weights:
            made = {**made, WEIGHTED: total(ranks, initial.weights)}
        return RankPlan(ranks, initial.costs, initial.budget, spent, initial.scale, made, budget_units=units)

    def scalars(
        self, step: int, ranks: Mapping[str, int], before: Mapping[str, int], alive: Mapping[str, np.ndarray]
    ) -> dict[str, float]:
        """What is logged of a cut: `ranks` that it left, `before` those that were logged last, `alive` the scores."""
        flat = np.concatenate(list(alive.values()))
        return {
            "rank_allocation/step": step,
            "rank_allocation/parameters": total(ranks, self.initial.costs),
            "rank_allocation/budget": self.budget_at(step),
            "rank_allocation/final_budget": self.initial.parameters,
            "rank_allocation/total_rank": sum(ranks.values()),
            "rank_allocation/modules_changed": sum(rank != before[name] for name, rank in ranks.items()),
            "rank_allocation/score_mean": float(flat.mean()),
            "rank_allocation/score_max": float(flat.max()),
            "rank_allocation/score_median": float(np.median(flat)),
        }

    @property
    def _in_ranks(self) -> bool:
        """Whether ranks were asked for, and the curve counts these."""
        return self.options.cut.budget_in == "ranks" and self.initial.asked.kind in ("uniform rank", "total rank")

    @property
    def _counts_units(self) -> bool:
        """Whether the last cut keeps a number of units, and what these cost follows."""
        return self._in_ranks or self.initial.asked.counts_units

    def _curve(self) -> tuple[Mapping[str, float], float, float]:
        """What a unit of each module takes from the budget, and where the budget's curve starts and ends."""
        initial = self.initial
        if initial.asked.counts_units:
            units = sum(initial.ranks.values())
            return dict.fromkeys(initial.costs, 1), units, initial.asked.units(units)
        if self.options.cut.budget_in == "parameters":
            return self._parameters()
        if initial.asked.kind == "total rank":
            return initial.price, initial.weighted, float(initial.asked.value)
        # The parameters of r=2 were rounded down by less than one; nothing that costs below 1/100 is lost by this.
        share = (initial.parameters + 1) / self._parameters()[1]
        return initial.price, initial.weighted, math.floor(100 * share * initial.weighted) / 100

    def _parameters(self) -> tuple[Mapping[str, int], int, int]:
        initial = self.initial
        return initial.costs, total(initial.ranks, initial.costs), initial.parameters

    def _walk(self, alive: Mapping[str, np.ndarray], budget: float, price: Mapping[str, float]) -> dict[str, int]:
        _, _, final = self._curve()
        heeded = (
            bounded_limits(self.initial.limits, final, price)
            if self.initial.limits.get("within")
            else self.initial.limits
        )
        limits = {key: heeded[key] for key in ("min_rank", "rank_by")}
        return top_ranks(alive, self.initial.costs, budget, price=price, fill=self.options.cut.fill, **limits)


Number = TypeVar("Number", int, float)


def total(ranks: Mapping[str, int], price: Mapping[str, Number]) -> Number:
    """What ranks take together, by what one unit of each module takes."""
    return sum(rank * price[name] for name, rank in ranks.items())


def unit_weights(
    shapes: Mapping[str, tuple[int, int]], asked: Mapping[str, float] | Literal["official"]
) -> dict[str, float]:
    """What one unit of each module takes from a budget in ranks.

    Args:
        shapes: module name -> `(d_in, d_out)`.
        asked: end of a module's name -> weight, others 1; or `"official"`, IGU-LoRA's released code: 1 for every matrix of the
            attention, whatever its shape, and `(d_ff / d + 1) / 2` for one of the MLP (`(DIM_MULTIPLIER + 1) / 2` there).

    Raises:
        AllocationError: an end that no module has.

    """
    if asked == "official":
        return {
            name: 1.0 if is_attention(name) else (max(shape) / min(shape) + 1) / 2 for name, shape in shapes.items()
        }
    if unmatched := [end for end in asked if not any(ends_with(name, end) for name in shapes)]:
        raise AllocationError(
            f"cost_weights name {unmatched[0]!r}, which no adapted module is or ends with; see target_modules"
        )
    found = {name: next((w for end, w in asked.items() if ends_with(name, end)), 1.0) for name in shapes}
    return found if asked else {}


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
