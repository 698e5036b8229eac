"""Plans of the same scores at other budgets: what the slider over budgets shows."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorank.allocation.budgeted import allocate
from lorank.errors import LorankError, LorankWarning
from lorank.plan import RankPlan
from lorank.report.rank_map import is_made_from
from lorank.scores import ImportanceScores

_LIMITS = ("max_rank", "min_rank", "multiple_of", "rank_by", "scope", "within")


def plans_of_budgets(plan: RankPlan, scores: ImportanceScores, count: int = 24) -> list[RankPlan]:
    """Allocate budgets from a quarter of the plan's parameters to four times as many, or to all units that were scored.

    Budgets are spaced evenly in their logarithm; the plan's own is among them. Limits are those of the plan. A budget that pays
    for nothing within the limits is left out.

    Returns:
        Ascending in what they spend, each spending once; empty where the scores are not those of the plan,
        and for a plan of several groups.

    """
    # One number says nothing about the budgets of several groups.
    if not plan.spent or plan.provenance.get("groups") or not is_made_from(plan, scores):
        return []
    limits: Mapping[str, Any] = {key: plan.provenance[key] for key in _LIMITS if plan.provenance.get(key) is not None}
    most = scores.max_ranks or {name: len(values) for name, values in scores.scores.items()}
    largest = min(4 * plan.spent, sum(most[name] * cost for name, cost in scores.unit_costs.items()))
    budgets = {int(budget) for budget in np.geomspace(max(1, plan.spent // 4), max(largest, plan.spent), count)}
    found: dict[int, RankPlan] = {}
    for budget in sorted(budgets | {plan.spent}):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", LorankWarning)
                made = allocate(scores, budget, scale=plan.scale, **limits)
        except (LorankError, TypeError):  # limits of another version, too
            continue
        found.setdefault(made.spent, made)
    return list(found.values())
