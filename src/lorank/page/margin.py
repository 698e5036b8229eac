"""The margin of a plan: which units of rank, or which modules, just got their rank and which just missed it."""

from dataclasses import dataclass

import numpy as np

from lorank.plan import RankPlan
from lorank.report.rank_map import is_made_from
from lorank.scores import ImportanceScores

# In a plan's provenance: what its limits are where one threshold alone decides.
_NO_LIMIT = {
    "groups": (None,),
    "scope": (None, "global"),
    "within": (None,),
    "max_rank": (None,),
    "min_rank": (None, 0),
    "multiple_of": (None, 1),
}


@dataclass(frozen=True)
class MarginUnit:
    """A unit of rank near the threshold.

    Attributes:
        module: its full name.
        unit: its number in the module, from 0.
        kept: whether it is in the plan.
        score: its score, per parameter where units were ranked so.
        distance: from the threshold, in standard errors of its score; None where these are not known or zero.
        error: the standard error.

    """

    module: str
    unit: int
    kept: bool
    score: float
    distance: float | None
    error: float | None


@dataclass(frozen=True)
class PlanMargin:
    """The units nearest to the threshold.

    Attributes:
        threshold: midway between the least score that was kept and the largest that was not.
        per_parameter: whether scores are per parameter.
        units: the nearest ones, the highest score first.
        within: of all units, how many are nearer to the threshold than two of their standard errors; None without errors.
        total: all units.

    """

    threshold: float
    per_parameter: bool
    units: tuple[MarginUnit, ...]
    within: int | None
    total: int


def plan_margin(plan: RankPlan, scores: ImportanceScores, shown: int = 10) -> PlanMargin | None:
    """Find the units nearest to the threshold, `shown` on each side.

    Of a module with rank r the r units of the largest scores are kept, as a cut keeps them.

    Returns:
        None for scores of modules (proportional ranks have no threshold), for other scores than the plan's, for plans with
        limits, groups or layers of their own (no one threshold decides), and for plans that keep all units or none.

    """
    limited = any(plan.provenance.get(key) not in usual for key, usual in _NO_LIMIT.items())
    if scores.of_modules or limited or not is_made_from(plan, scores):
        return None
    by_cost = plan.provenance.get("rank_by") == "score-per-parameter"
    values, errors, kept, names = [], [], [], []
    for name, own in scores.scores.items():
        price = scores.unit_costs[name] if by_cost else 1
        order = np.argsort(-own, kind="stable")
        is_kept = np.zeros(len(own), dtype=bool)
        is_kept[order[: plan.ranks[name]]] = True
        values.append(own / price)
        error = None if scores.standard_errors is None else scores.standard_errors[name]
        errors.append(np.full(len(own), np.nan) if error is None else error / price)
        kept.append(is_kept)
        names += [(name, unit) for unit in range(len(own))]
    score, error, chosen = np.concatenate(values), np.concatenate(errors), np.concatenate(kept)
    if chosen.all() or not chosen.any():
        return None
    threshold = float((score[chosen].min() + score[~chosen].max()) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(error > 0, (score - threshold) / error, np.nan)
    nearest = [
        number
        for side in (chosen, ~chosen)
        for number in np.flatnonzero(side)[np.argsort(np.abs(score[side] - threshold), kind="stable")][:shown]
    ]
    units = tuple(
        MarginUnit(
            module=names[number][0],
            unit=names[number][1],
            kept=bool(chosen[number]),
            score=float(score[number]),
            distance=float(distance[number]) if np.isfinite(distance[number]) else None,
            error=float(error[number]) if np.isfinite(error[number]) else None,
        )
        for number in sorted(nearest, key=lambda number: -score[number])
    )
    known = np.isfinite(distance)
    within = int((np.abs(distance[known]) < 2).sum()) if known.any() else None
    return PlanMargin(threshold, by_cost, units, within, len(score))
