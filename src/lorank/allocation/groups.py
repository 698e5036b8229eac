"""A budget for each of several groups of modules, such as the towers of a model for images and texts."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from lorank.budget import Budget, Budgets, of_group, read_budgets
from lorank.errors import AllocationError
from lorank.findings import Findings
from lorank.module_names import has_part
from lorank.plan import GROUPS, WEIGHTED, RankPlan
from lorank.scores import ImportanceScores
from lorank.untrusted.expressions import check_time, compiled


def modules_of_groups(names: Iterable[str], groups: Iterable[str]) -> dict[str, list[str]]:
    """Group -> its modules, in the order of `names`.

    A group is a part between the dots of a module's full name (`vision_model`), or a regular expression for the whole of it.

    Raises:
        AllocationError: a group without a module, or a module in no group or in several.

    """
    names, found = list(names), dict[str, list[str]]()
    expressions = {group: compiled(group) for group in groups}
    try:
        check_time(expressions, names)
    except ValueError as error:
        raise AllocationError(f"budgets of groups: {error}") from None
    found = {group: [] for group in expressions}
    for name in names:
        own = [group for group in found if has_part(name, group) or expressions[group].fullmatch(name)]
        if len(own) != 1:
            which = f"is in {len(own)} groups ({', '.join(map(repr, own))})" if own else "is in no group"
            raise AllocationError(
                f"{name!r} {which} of {', '.join(map(repr, found))}; every module that gets a rank must be in exactly one: a "
                "group is a part of the module's name, or a regular expression for all of it; modules that shall have no adapter "
                "are left out of the targets (exclude_modules)"
            )
        found[own[0]].append(name)
    if empty := [group for group, modules in found.items() if not modules]:
        raise AllocationError(f"group {empty[0]!r} has no module; the first module is {names[0]!r}")
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
        BudgetError: a budget of a group that cannot be honoured, or budgets of which some count units and others parameters.
        AllocationError: see `modules_of_groups`, or limits that a group cannot honour.
        SeveralFindings: more than one of these.

    """
    asked = read_budgets(budgets)
    assert isinstance(asked, dict), "a mapping is read as a mapping"
    members, plans, findings = modules_of_groups(scores.unit_costs, asked), dict[str, RankPlan](), Findings()
    for group, names in members.items():
        with findings.check(), of_group(group):
            plans[group] = allocate(_of(scores, names), asked[group])
    findings.raise_all()
    plan = together(plans, scores.unit_costs)
    made = {key: value for key, value in plan.provenance.items() if key != "stability"}
    return replace(plan, provenance={**made, "scores": scores.fingerprint})


def together(plans: Mapping[str, RankPlan], names: Iterable[str]) -> RankPlan:
    """One plan of the plans of several groups; its provenance is the first one's, and under `groups` what each was asked for.

    Args:
        plans: group -> plan, all of one kind and scale.
        names: of all modules, in their order.

    """
    parts = list(plans.values())
    ranks = {name: rank for plan in parts for name, rank in plan.ranks.items()}
    costs = {name: cost for plan in parts for name, cost in plan.unit_costs.items()}
    units = [plan.budget_units for plan in parts if plan.budget_units is not None]
    weighted = [plan.provenance[WEIGHTED] for plan in parts if WEIGHTED in plan.provenance]
    each = {
        group: {
            **plan.budget_record,
            "modules": len(plan.ranks),
            **({"stability": plan.provenance["stability"]} if "stability" in plan.provenance else {}),
        }
        for group, plan in plans.items()
    }
    return replace(
        parts[0],
        ranks={name: ranks[name] for name in names},
        unit_costs={name: costs[name] for name in names},
        budget=", ".join(f"{group}: {plan.budget}" for group, plan in plans.items()),
        budget_parameters=sum(plan.budget_parameters for plan in parts),
        budget_units=sum(units) if units else None,
        provenance={**parts[0].provenance, **({WEIGHTED: sum(weighted)} if weighted else {}), GROUPS: each},
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
