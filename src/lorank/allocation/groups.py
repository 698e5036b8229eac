"""A budget for each of several groups of modules, such as the towers of a model for images and texts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lorank.budget import Budget
from lorank.errors import AllocationError, BudgetError
from lorank.expressions import check_time, compiled
from lorank.module_names import has_part
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

Budgets = Mapping[str, str | int | Budget]


def modules_of_groups(names: Mapping[str, Any], groups: Budgets) -> dict[str, list[str]]:
    """Group -> its modules, in the order of `names`.

    A group is a part between the dots of a module's full name (`vision_model`), or a regular expression for the whole of it.

    Raises:
        AllocationError: a group without a module, a module in no group or in several, or an expression that cannot be read.

    """
    if not groups or not all(isinstance(group, str) and group for group in groups):
        raise AllocationError(
            "budgets of groups are empty, or name a group by something else than a string; give {part of the names: budget}"
        )
    expressions = {}
    for group in groups:
        try:
            expressions[group] = compiled(group)
            check_time([group], names)
        except ValueError as error:
            raise AllocationError(
                f"group {group[:80]!r} is no regular expression that can be used: {error}; mend it"
            ) from None
    found: dict[str, list[str]] = {group: [] for group in groups}
    for name in names:
        own = [group for group in groups if has_part(name, group) or expressions[group].fullmatch(name)]
        if len(own) != 1:
            which = f"is in {len(own)} groups ({', '.join(map(repr, own))})" if own else "is in no group"
            raise AllocationError(
                f"{name!r} {which} of {', '.join(map(repr, groups))}; every module that was scored must be in exactly one: a "
                "group is a part of the module's name, or a regular expression for all of it; modules that shall have no adapter "
                "are left out where they are scored (exclude_modules)"
            )
        found[own[0]].append(name)
    if empty := [group for group, modules in found.items() if not modules]:
        raise AllocationError(f"group {empty[0]!r} has no module; the first that was scored is {next(iter(names))!r}")
    return found


def in_groups(
    scores: ImportanceScores, budgets: Budgets, allocate: Callable[[ImportanceScores, Budget], RankPlan]
) -> RankPlan:
    """One plan of the plans of all groups, each exact within its own budget.

    Args:
        scores: of all modules.
        budgets: group -> budget; `r`, `rank`, `keep` and `beta` are of the group's own modules, `%` of the whole base model.
        allocate: makes the plan of one group.

    Raises:
        BudgetError: budgets of which some count units and others parameters.
        AllocationError: see `modules_of_groups`.

    """
    asked = {group: Budget.parse(budget) for group, budget in budgets.items()}
    if len({budget.counts_units for budget in asked.values()}) > 1:
        raise BudgetError(
            "some groups' budgets count units of rank, and others parameters; give one kind for all groups"
        )
    members = modules_of_groups(scores.unit_costs, asked)
    plans = {group: allocate(_of(scores, names), asked[group]) for group, names in members.items()}
    parts = list(plans.values())
    ranks = {name: rank for plan in parts for name, rank in plan.ranks.items()}
    units = [plan.budget_units for plan in parts if plan.budget_units is not None]
    each = {
        group: {
            **plan.budget_record,
            "modules": len(plan.ranks),
            **({"stability": plan.provenance["stability"]} if "stability" in plan.provenance else {}),
        }
        for group, plan in plans.items()
    }
    made = {key: value for key, value in parts[0].provenance.items() if key != "stability"}
    return replace(
        parts[0],
        ranks={name: ranks[name] for name in scores.unit_costs},
        unit_costs=dict(scores.unit_costs),
        budget=", ".join(f"{group}: {budget}" for group, budget in asked.items()),
        budget_parameters=sum(plan.budget_parameters for plan in parts),
        budget_units=sum(units) if units else None,
        provenance={**made, "scores": scores.fingerprint, "groups": each},
    )


def _of(scores: ImportanceScores, names: list[str]) -> ImportanceScores:
    """The scores of some of the modules."""

    def some(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in names}

    return replace(
        scores,
        scores=some(scores.scores),
        unit_costs=some(scores.unit_costs),
        standard_errors=None if scores.standard_errors is None else some(scores.standard_errors),
        max_ranks=None if scores.max_ranks is None else some(scores.max_ranks),
        resamples=None
        if scores.resamples is None
        else {kind: some(values) for kind, values in scores.resamples.items()},
    )
