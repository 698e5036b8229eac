"""How much of a plan the choice of calibration examples decided: the same allocation on resampled scores."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lorank.plan import RankPlan
from lorank.scores import ImportanceScores


def plan_stability(
    scores: ImportanceScores, plan: RankPlan, ranks_of: Callable[[ImportanceScores], Mapping[str, int]]
) -> dict[str, Any]:
    """Compare a plan with those that other calibration examples would have given.

    Args:
        scores: with resamples.
        plan: made from `scores`.
        ranks_of: the allocation that made it, for other scores.

    Returns:
        JSON values. `halves` compares the two halves of the calibration examples with each other, `bootstrap` each of its
        draws with the plan (medians over draws, and `worst_moved_share`, the 95th percentile):
        `spearman` of the scores, `changed_modules` whose rank differs, `moved_share` of the parameters that are spent on
        another module. A resample in which no module is worth anything is left out.
        Spearman is None where it is not defined (equal scores).

    """
    found: dict[str, Any] = {}
    halves = scores.resampled("halves")
    if len(halves) == 2:
        made = [_with(plan, ranks_of(half)) for half in halves if _any_worth(half)]
        if len(made) == 2:
            found["halves"] = {"spearman": _spearman(*halves), **_changes(*made)}
    draws = [draw for draw in scores.resampled("bootstrap") if _any_worth(draw)]
    if draws:
        changes = [_changes(plan, _with(plan, ranks_of(draw))) for draw in draws]
        correlations = [c for draw in draws if (c := _spearman(scores, draw)) is not None]
        found["bootstrap"] = {
            "draws": len(draws),
            "spearman": float(np.median(correlations)) if correlations else None,
            "changed_modules": int(np.median([change["changed_modules"] for change in changes])),
            "moved_share": float(np.median([change["moved_share"] for change in changes])),
            "worst_moved_share": float(np.quantile([change["moved_share"] for change in changes], 0.95)),
        }
    return found


def _any_worth(scores: ImportanceScores) -> bool:
    return any(bool((values > 0).any()) for values in scores.scores.values())


def _with(plan: RankPlan, ranks: Mapping[str, int]) -> RankPlan:
    return RankPlan(ranks, plan.unit_costs, plan.budget, plan.budget_parameters, plan.scale)


def _changes(one: RankPlan, other: RankPlan) -> dict[str, Any]:
    changed = sum(rank != other.ranks[name] for name, rank in one.ranks.items())
    return {"changed_modules": changed, "moved_share": one.moved_share(other)}


def _spearman(one: ImportanceScores, other: ImportanceScores) -> float | None:
    pairs = np.array([[one.scores[name][0], other.scores[name][0]] for name in one.scores])
    if any(len(set(column)) < 2 for column in pairs.T):
        return None
    from scipy.stats import spearmanr  # half of the time that `lorank allocate` would take to start

    return float(spearmanr(pairs[:, 0], pairs[:, 1]).statistic)
