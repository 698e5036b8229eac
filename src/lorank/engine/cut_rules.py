"""How many units of each module a cut during training keeps: budget curve, costs and limits; no model and no state.

Where each of several groups of modules has a budget, each group is cut by itself, at the same steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeVar

import numpy as np

from lorank.allocation.bounds import bounded_limits
from lorank.allocation.budgeted import allocate
from lorank.allocation.groups import together
from lorank.allocation.schedule import CutSchedule, budget_at
from lorank.allocation.top_b import EQUAL, top_ranks, warn_if_equal
from lorank.budget import Budget, of_group
from lorank.engine.options import Choices
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
        groups: group -> the same of its own modules, where each of several groups has a budget of its own.

    """

    ranks: Mapping[str, int]
    costs: Mapping[str, int]
    budget: str
    parameters: int
    limits: Mapping[str, Any]
    scale: float
    provenance: Mapping[str, Any]
    weights: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, "InitialAdapter"] = field(default_factory=dict)

    @property
    def each_parameters(self) -> int | dict[str, int]:
        """`parameters`, or those of each group."""
        return {group: one.parameters for group, one in self.groups.items()} or self.parameters

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
        if self.options.cut.fill and not self.in_ranks:
            scores, asked = ImportanceScores(alive, initial.costs, None, initial.provenance), initial.asked
            budget = asked if asked.counts_units else initial.parameters
            return allocate(scores, budget, scale=initial.scale, **initial.limits)
        if not initial.provenance.get(EQUAL):
            warn_if_equal(alive)
        price, _, final = self._curve() if self.counts_units else self._parameters()
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
        if not self.counts_units:
            return RankPlan(ranks, initial.costs, initial.budget, initial.parameters, initial.scale, made)
        # What was asked for is units; what they cost follows from which they are.
        spent, units = total(ranks, initial.costs), math.floor(self._curve()[2])
        if self.in_ranks and initial.weights:
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

    def unscored(self, alive: Mapping[str, np.ndarray]) -> str | None:
        """What a cut would have nothing to choose by, because every score is 0: an addition to an error's text, or None."""
        return None if any(values.any() for values in alive.values()) else ""

    @property
    def in_ranks(self) -> bool:
        """Whether ranks were asked for, and the curve counts these."""
        return self.options.cut.budget_in == "ranks" and self.initial.asked.kind in ("uniform rank", "total rank")

    @property
    def counts_units(self) -> bool:
        """Whether the last cut keeps a number of units, and what these cost follows."""
        return self.in_ranks or self.initial.asked.counts_units

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
T = TypeVar("T")


def total(ranks: Mapping[str, int], price: Mapping[str, Number]) -> Number:
    """What ranks take together, by what one unit of each module takes."""
    return sum(rank * price[name] for name, rank in ranks.items())


def cut_rules(initial: InitialAdapter, options: Choices, schedule: CutSchedule) -> CutRules:
    """The rules of one budget, or of one for each group."""
    return (GroupRules if initial.groups else CutRules)(initial, options, schedule)


@dataclass(frozen=True)
class GroupRules(CutRules):
    """`CutRules` of each group, put together: ranks are those of a separate allocation of every group.

    What is logged of the budget is the sum over groups. Nothing is cut before every group has a score that is not 0.
    """

    @cached_property
    def _rules(self) -> dict[str, CutRules]:
        return {group: CutRules(one, self.options, self.schedule) for group, one in self.initial.groups.items()}

    def ranks_at(self, step: int, alive: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Ranks of a cut on the way."""
        found: dict[str, int] = {}
        for rules in self._rules.values():
            found |= rules.ranks_at(step, _own(rules, alive))
        return {name: found[name] for name in alive}

    def last_plan(self, alive: Mapping[str, np.ndarray]) -> RankPlan:
        """The plan of the last cut, inside every limit."""
        plans = {}
        for group, rules in self._rules.items():
            with of_group(group):
                plans[group] = rules.last_plan(_own(rules, alive))
        return together(plans, alive)

    @property
    def pays_for_a_unit(self) -> bool:
        """Whether the last cut can keep a unit in every group."""
        return all(rules.pays_for_a_unit for rules in self._rules.values())

    def budget_at(self, step: int) -> float:
        """What the curves leave at a step, in their own costs."""
        return sum(rules.budget_at(step) for rules in self._rules.values())

    def plan(self, ranks: Mapping[str, int], provenance: Mapping[str, Any] | None = None) -> RankPlan:
        """The plan of these ranks."""
        plans = {group: rules.plan(_own(rules, ranks), provenance) for group, rules in self._rules.items()}
        return together(plans, ranks)

    def unscored(self, alive: Mapping[str, np.ndarray]) -> str | None:
        """The first group in which every score is 0."""
        silent = (group for group, rules in self._rules.items() if rules.unscored(_own(rules, alive)) is not None)
        return next((f" of group {group!r}" for group in silent), None)


def _own(rules: CutRules, values: Mapping[str, T]) -> dict[str, T]:
    return {name: values[name] for name in rules.initial.ranks}


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
