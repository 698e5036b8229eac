"""The cut: keep the most important units of rank that a parameter budget pays for."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from lorank.budget import Budget
from lorank.errors import AllocationError, LorankWarning
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.targets import natural_order, places

RankBy = Literal["score", "score-per-parameter"]
Scope = Literal["global", "layer"]


def allocate(
    scores: ImportanceScores,
    budget: str | int | Budget,
    *,
    max_rank: int | None = None,
    min_rank: int = 0,
    multiple_of: int = 1,
    rank_by: RankBy = "score",
    scope: Scope = "global",
    scale: float = 2.0,
) -> RankPlan:
    """Give each module a rank: the global quantile cut of I-LoRA (section 1.4, `S < τ` is dropped), made exact.

    Units are walked from the most important down and taken whenever they still fit, so the plan

    - never spends more than the budget, and no unit more would fit (within the limits);
    - with one global threshold spends no less when the budget grows, and where all units cost the same no rank shrinks;
    - does not depend on the order of the modules, nor on the unit of the scores.

    Ties go to the lower unit of a module first, then to the module that comes first by name (`layer.2` before
    `layer.10`), so equal scores give equal ranks and spread the remainder from the first layer on.

    Args:
        scores: importance of every unit; a module cannot get more rank than it has scored units.
        budget: see `lorank.Budget`. `%` and `beta` use the base size and the number of scored units.
        max_rank: upper limit for every module.
        min_rank: every module gets at least this.
        multiple_of: every rank is a multiple of this; a block of units is worth the mean of its scores.
        rank_by: `"score"` (the papers), or `"score-per-parameter"`: divided by the cost of the unit, so that a unit of
            a wide matrix must be worth more to be kept.
        scope: `"global"` (one threshold for all, reading A6) or `"layer"`: each transformer block gets the share of
            the budget that it has of all units' cost; what this leaves over is spent globally.
        scale: `alpha / r` that the plan records.

    Raises:
        BudgetError: the budget cannot be read, or pays for no unit.
        AllocationError: limits that contradict each other or that the budget cannot pay for.

    """
    asked = Budget.parse(budget)
    costs = dict(scores.unit_costs)
    _check_limits(scores, max_rank, min_rank, multiple_of)
    parameters = asked.parameters(
        costs,
        base_parameters=scores.provenance.get("base_parameters"),
        initial_rank=max(len(values) for values in scores.scores.values()),
    )
    floor = dict.fromkeys(costs, min_rank)
    spent = sum(rank * costs[name] for name, rank in floor.items())
    if spent > parameters:
        raise AllocationError(
            f"min_rank {min_rank} alone costs {spent:,} parameters, above the budget {asked} = {parameters:,}; "
            "lower min_rank or raise the budget"
        )

    blocks = _blocks(scores.scores, costs, max_rank, min_rank, multiple_of, rank_by)
    ranks = dict(floor)
    if scope == "layer":
        whole = sum(cost for *_, cost in blocks)
        layer_of = {name: (place.stack, place.layer) for name, place in places(costs).items()}
        for layer in sorted(set(layer_of.values()), key=str):
            own = [block for block in blocks if layer_of[block[0]] == layer]
            share = int((parameters - spent) * sum(cost for *_, cost in own) // whole) if whole else 0
            _take(own, ranks, share, multiple_of)
    elif scope != "global":
        raise AllocationError(f"scope is {scope!r}; allowed: 'global', 'layer'")
    left = parameters - sum(rank * costs[name] for name, rank in ranks.items())
    # What a layer's own share already took is the best part of it, so the walk goes on behind it.
    _take([b for b in blocks if b[1] >= ranks[b[0]]], ranks, left, multiple_of)

    limits: dict[str, Any] = {"max_rank": max_rank, "min_rank": min_rank, "multiple_of": multiple_of}
    plan = RankPlan(
        ranks,
        costs,
        str(asked),
        parameters,
        scale,
        {**scores.provenance, "scores": scores.fingerprint, "rank_by": rank_by, "scope": scope, **limits},
    )
    everything_taken = all(ranks[name] > start for name, start, _ in blocks)
    if everything_taken and parameters - plan.spent >= min(costs.values()):
        warnings.warn(
            f"the budget {asked} = {parameters:,} parameters pays for more units than were scored within the limits; "
            f"the plan spends {plan.spent:,}: raise max_rank, or score with a higher initial rank",
            LorankWarning,
            stacklevel=2,
        )
    return plan


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
    if rank_by not in ("score", "score-per-parameter"):
        raise AllocationError(f"rank_by is {rank_by!r}; allowed: 'score', 'score-per-parameter'")
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


def _check_limits(scores: ImportanceScores, max_rank: int | None, min_rank: int, multiple_of: int) -> None:
    if multiple_of < 1:
        raise AllocationError(f"multiple_of is {multiple_of}; allowed: whole numbers from 1")
    if min_rank < 0 or min_rank % multiple_of:
        raise AllocationError(f"min_rank is {min_rank}; allowed: 0 or a multiple of multiple_of = {multiple_of}")
    if max_rank is not None and max_rank < max(min_rank, multiple_of):
        raise AllocationError(
            f"max_rank is {max_rank}, below {'min_rank' if max_rank < min_rank else 'multiple_of'} = "
            f"{max(min_rank, multiple_of)}; raise one or lower the other"
        )
    short = {name: len(values) for name, values in scores.scores.items() if len(values) < min_rank}
    if short:
        name = min(short)
        raise AllocationError(
            f"min_rank is {min_rank}, but {name!r} has only {short[name]} scored units; lower min_rank"
        )


def uniform_scores(
    costs: Mapping[str, int], units: int, provenance: Mapping[str, Any] | None = None
) -> ImportanceScores:
    """Equal scores: what uniform LoRA believes. `allocate` turns them into equal ranks, remainder from the first layer."""
    return ImportanceScores({name: np.ones(units) for name in costs}, costs, None, provenance or {})
