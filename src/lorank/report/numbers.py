"""What tables of plans and scores show, as numbers: what commands write with `--json`. Keys stay."""

from dataclasses import asdict
from typing import Any

from lorank.plan import RankPlan
from lorank.report.module_grid import layer_groups, projection_groups
from lorank.scores import ImportanceScores


def plan_numbers(plan: RankPlan) -> dict[str, Any]:
    """What plan.json holds (`budget`, `total_rank`, `scale`, `modules`, `provenance`, ...), and mean ranks of groups of modules.

    `by_layer` and `by_projection` are lists of `name`, `modules` (how many), `mean_rank`, and `share` of the parameters, 0 to 1.
    """
    groups = {"by_layer": layer_groups(plan), "by_projection": projection_groups(plan)}
    return {**plan.to_json(), **{key: [asdict(group) for group in found] for key, found in groups.items()}}


def difference_numbers(plan: RankPlan, other: RankPlan) -> dict[str, Any]:
    """What changes from one plan to another.

    `changed_modules` is their number, `moved_share` the share of the first's parameters that the second spends elsewhere or not
    at all (0 to 1), `spent_difference` in parameters; `modules` has both ranks of each module.

    Raises:
        PlanError: the plans are of different models.

    """
    return {
        "moved_share": plan.moved_share(other),
        "changed_modules": sum(other.ranks[name] != rank for name, rank in plan.ranks.items()),
        "spent_difference": other.spent - plan.spent,
        "first": plan.budget_record,
        "second": other.budget_record,
        "modules": {name: {"first": rank, "second": other.ranks[name]} for name, rank in plan.ranks.items()},
    }


def score_numbers(scores: ImportanceScores) -> dict[str, Any]:
    """Of each module the sum of its units' scores, its share of all of them (0 to 1), and the number of units; `provenance`."""
    sums = {name: float(values.sum()) for name, values in scores.scores.items()}
    total = sum(max(0.0, one) for one in sums.values()) or 1.0
    modules = {
        name: {"score": one, "share": max(0.0, one) / total, "units": int(scores.scores[name].size)}
        for name, one in sums.items()
    }
    return {"modules": modules, "provenance": dict(scores.provenance)}
