"""From scores to a plan for a budget: one door for both rules, top-b of units and proportional to modules."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np

from lorank.allocation.bounds import bounded_limits
from lorank.allocation.groups import in_groups
from lorank.allocation.proportional import ProportionalRule
from lorank.allocation.stability import plan_stability
from lorank.allocation.top_b import EQUAL, RankBy, Scope, floor_of, top_b_ranks, warn_if_equal
from lorank.budget import Budget, Budgets
from lorank.errors import AllocationError, BudgetError, LorankWarning, ScoresError
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores


def allocate(
    scores: ImportanceScores,
    budget: str | int | Budget | Budgets,
    *,
    max_rank: int | None = None,
    min_rank: int = 0,
    multiple_of: int = 1,
    rank_by: RankBy | None = None,
    scope: Scope = "global",
    scale: float | None = None,
    within: float | None = None,
) -> RankPlan:
    """Give each module a rank, within the budget to the parameter; neither a model nor a GPU is needed.

    Scores of units are cut. Under `"beta=0.5"` or `"keep=50%"` this is I-LoRA's cut (section 1.3: scores sorted ascending,
    `τ = G[t·β]`, `S < τ` is dropped): the `t - floor(β t)` best of the t units stay, whatever each costs, and the plan's
    `budget_parameters` are what these cost. Under all other budgets units are walked from the most important down and taken
    whenever they still fit. Scores of modules (Sensitivity-LoRA) are turned into proportional ranks, see
    `lorank.allocation.proportional`. In all cases the plan

    - never spends more than the budget, and no unit more would fit (within the limits);
    - does not depend on the order of the modules, nor on the unit of the scores;
    - for units under one global threshold, spends no less when the budget grows, and where all units cost the same no rank
      shrinks. (Proportional ranks can give a module a unit less for a larger budget.)

    A warning says where all scores are equal, which says nothing about the layers.

    Ties go to the lower unit of a module first, then to the module that comes first by name (`layer.2` before
    `layer.10`), so equal scores give equal ranks and spread the remainder from the first layer on.

    Where the scores know what they would have been on other calibration examples, the plan's provenance says under
    `stability` how much of it would have moved, see `lorank.allocation.stability`.

    Args:
        scores: of every unit, or of every module. A module cannot get more rank than it has scored units, or than its matrix.
        budget: see `lorank.Budget`. `%` uses the base size, `keep` and `beta` the number of scored units; scores of modules do
            not know the latter. Or a mapping, with a budget for each group of modules:
            `{"vision_model": "r=2", "language_model": "20M"}`. A group is a part of the modules' names between the dots, or a
            regular expression for whole names; every module is in exactly one. All else holds within each group, also `scope`
            and `within`; see `lorank.allocation.groups`.
        max_rank: upper limit for every module.
        min_rank: every module gets at least this, or all that it can have if that is less (a gate with one output has rank 1).
        multiple_of: every rank is a multiple of this; a block of units is worth the mean of its scores.
        rank_by: `"score"` (the papers), or `"score-per-parameter"`: divided by the cost of the unit, so that a unit of
            a wide matrix must be worth more to be kept. None is that of the run that the scores were made in, or `"score"`.
        scope: `"global"` (one threshold for all, reading A6) or, for scores of units, `"layer"`: each transformer block
            gets the share of the budget that it has of all units' cost; what this leaves over is spent globally.
        scale: `alpha / r` that the plan records; None is that of the recipe that the scores were made by, or 2.
        within: no module gets less than the mean rank divided by this, or more than the mean rank times this; the mean rank is
            what the budget buys uniformly. `within=2.0`: from half to twice the mean; where the half is at most 1/2, rank 0
            is allowed. A module that cannot have the lower limit gets all that it can. None is that of the preset or the
            recipe that the scores were made by, `math.inf` sets no bounds. See `lorank.allocation.bounds`.

    Raises:
        BudgetError: the budget cannot be read, or pays for no unit.
        AllocationError: limits that contradict each other or that the budget cannot pay for; a module in no group or several.

    """
    if not isinstance(scores, ImportanceScores):
        raise ScoresError(
            f"scores are {type(scores).__name__}; give what lorank.score or ImportanceScores.load returned"
        )
    if isinstance(budget, Mapping):
        own: dict[str, Any] = {
            "max_rank": max_rank,
            "min_rank": min_rank,
            "multiple_of": multiple_of,
            "rank_by": rank_by,
        }
        own |= {"scope": scope, "scale": scale, "within": within}
        return in_groups(scores, budget, lambda part, of_group: allocate(part, of_group, **own))
    asked = Budget.parse(budget)
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < math.inf):
        raise AllocationError(f"scale is {scale!r}; allowed: numbers above 0")
    costs = dict(scores.unit_costs)
    asked_limits: dict[str, Any] = {"max_rank": max_rank, "min_rank": min_rank, "multiple_of": multiple_of}
    made_by = (scores.provenance.get("choices") or {}).get("ranks", {})
    rank_by = rank_by or made_by.get("rank_by", "score")
    within = made_by.get("within") if within is None else within
    within = None if within == math.inf else within
    asked_limits |= {"rank_by": rank_by, "scope": scope}
    most = scores.max_ranks or {name: len(values) for name, values in scores.scores.items()}
    _check_limits(scores, most, **asked_limits)
    counted = _counted(asked, scores)
    if within is not None:
        asked_limits["within"] = within
    limits = bounded_limits(asked_limits, counted.amount, counted.price)
    counted.check_limits(asked, most, limits["min_rank"], multiple_of)
    if not scores.provenance.get(EQUAL):
        warn_if_equal(scores.scores)
    scale = float(scores.provenance.get("scale", 2.0)) if scale is None else scale
    made_from = {**scores.provenance, "scores": scores.fingerprint, **asked_limits}
    if scores.of_modules:
        ranks_of = _proportional(scores, counted.amount, limits)
        of_each = np.array([values[0] for values in scores.scores.values()])
        ranks = dict(zip(scores.scores, ranks_of(of_each).tolist(), strict=True))
    else:
        ranks = top_b_ranks(scores, counted.amount, price=counted.price, **limits)
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    units, parameters = (counted.amount, spent) if counted.in_units else (None, counted.amount)
    plan = RankPlan(ranks, costs, str(asked), parameters, scale, made_from, budget_units=units)
    if scores.of_modules and scores.resamples:
        plan = replace(plan, provenance={**made_from, "stability": plan_stability(scores, plan, ranks_of)})
    left = counted.amount - sum(rank * counted.price[name] for name, rank in ranks.items())
    cap = {name: _blocks_of(limit, limits["max_rank"], multiple_of) for name, limit in most.items()}
    if all(ranks[name] >= cap[name] for name in ranks) and left >= min(counted.price.values()):
        raised = "max_rank" if within is None else "within or max_rank"
        mend = f"raise {raised}{'' if scores.of_modules else ', or score with a higher initial rank'}"
        warnings.warn(
            f"the budget {asked} = {counted.amount:,} {counted.noun} pays for more units than there are within the limits; "
            f"the plan spends {counted.amount - left:,}: {mend}",
            LorankWarning,
            stacklevel=2,
        )
    return plan


@dataclass(frozen=True)
class _Counted:
    """A budget as a number, and what a unit of each module takes from it."""

    amount: int
    price: Mapping[str, int]
    in_units: bool

    @property
    def noun(self) -> str:
        return "units of rank" if self.in_units else "parameters"

    def check_limits(self, asked: Budget, most: Mapping[str, int], min_rank: int, multiple_of: int) -> None:
        """Refuse a budget below one block, or below what `min_rank` takes."""
        if self.amount < (cheapest := multiple_of * min(self.price.values())):
            costs = "" if self.in_units else f" of the cheapest module, which cost {cheapest:,}"
            raise BudgetError(
                f"budget {asked} is {self.amount:,} {self.noun}, below {multiple_of} units of rank{costs}; ask for at least "
                "that, or lower multiple_of"
            )
        floor = sum(floor_of(min_rank, limit, multiple_of) * self.price[name] for name, limit in most.items())
        if floor > self.amount:
            raise AllocationError(
                f"min_rank {min_rank} alone costs {floor:,} {self.noun}, above the budget {asked} = {self.amount:,}; lower "
                "min_rank or raise the budget"
            )


def _counted(asked: Budget, scores: ImportanceScores) -> _Counted:
    if asked.counts_units and not scores.of_modules:
        units = asked.units(sum(len(values) for values in scores.scores.values()))
        return _Counted(units, dict.fromkeys(scores.unit_costs, 1), in_units=True)
    parameters = asked.parameters(scores.unit_costs, base_parameters=scores.provenance.get("base_parameters"))
    return _Counted(parameters, scores.unit_costs, in_units=False)


def _proportional(
    scores: ImportanceScores, parameters: int, limits: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """The rule for scores of modules: any scores `(modules,)` of the same modules -> ranks `(modules,)`."""
    assert scores.max_ranks is not None
    costs = {name: scores.unit_costs[name] for name in scores.scores}
    cap = {name: min(limit, limits["max_rank"] or limit) for name, limit in scores.max_ranks.items()}
    rule = ProportionalRule(costs, parameters, cap, min_rank=limits["min_rank"], multiple_of=limits["multiple_of"])
    per = np.array(list(costs.values()), dtype=np.float64) if limits["rank_by"] == "score-per-parameter" else 1.0
    return lambda worth: rule.ranks(worth / per)


def _blocks_of(most: int, max_rank: int | None, multiple_of: int) -> int:
    """The highest rank within the limits."""
    return min(most, max_rank or most) // multiple_of * multiple_of


def _check_limits(
    scores: ImportanceScores,
    most: Mapping[str, int],
    max_rank: int | None,
    min_rank: int,
    multiple_of: int,
    rank_by: str,
    scope: str,
) -> None:
    for key, value, allowed in (("rank_by", rank_by, get_args(RankBy)), ("scope", scope, get_args(Scope))):
        if value not in allowed:
            raise AllocationError(f"{key} is {value!r}; allowed: {', '.join(map(repr, allowed))}")
    for key, number in (("max_rank", max_rank), ("min_rank", min_rank), ("multiple_of", multiple_of)):
        if type(number) is not int and not (number is None and key == "max_rank"):  # plan.json has no other numbers
            raise AllocationError(
                f"{key} is {number!r}; allowed: whole numbers{' or None' if key == 'max_rank' else ''}"
            )
    if scope == "layer" and scores.of_modules:
        raise AllocationError("scope 'layer' cuts scores of units, these are of modules; leave it at 'global'")
    if multiple_of < 1:
        raise AllocationError(f"multiple_of is {multiple_of}; allowed: whole numbers from 1")
    if min_rank < 0 or min_rank % multiple_of:
        raise AllocationError(f"min_rank is {min_rank}; allowed: 0 or a multiple of multiple_of = {multiple_of}")
    if max_rank is not None and max_rank < max(min_rank, multiple_of):
        raise AllocationError(
            f"max_rank is {max_rank}, below {'min_rank' if max_rank < min_rank else 'multiple_of'} = "
            f"{max(min_rank, multiple_of)}; raise one or lower the other"
        )
    short = {name: limit for name, limit in most.items() if limit < min_rank}
    if len(short) == len(most):
        name = max(short, key=lambda each: short[each])
        what = "is a matrix of rank {}" if scores.of_modules else "has only {} scored units"
        raise AllocationError(f"min_rank is {min_rank}, but {name!r} {what.format(short[name])}; lower min_rank")
