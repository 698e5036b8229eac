"""What a model with a fresh adapter offers: initial ranks, costs, and whether the budget fits; before anything is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from lorank.adapter.adapted_part import base_of
from lorank.adapter.convert import starting_rank
from lorank.allocation.budgeted import allocate
from lorank.allocation.groups import modules_of_groups
from lorank.allocation.schedule import CutSchedule
from lorank.allocation.top_b import uniform_scores
from lorank.artefact import versions
from lorank.budget import Budget, budget_text, check_one_kind, of_group
from lorank.engine.cut_rules import CutRules, InitialAdapter, total, unit_weights
from lorank.engine.options import Choices
from lorank.errors import AllocationError, BudgetError
from lorank.findings import Findings
from lorank.models.base_size import base_parameters
from lorank.unsuitable import model_type_of


def read_adapter(
    model: nn.Module,
    layers: Mapping[str, LoraLayer],
    adapter_name: str,
    budget: Budget | Mapping[str, Budget],
    options: Choices,
    provenance: Mapping[str, Any],
) -> InitialAdapter:
    """Read ranks, costs and scale off the adapter's layers, and try the limits on equal scores.

    Args:
        model: carries the adapter.
        layers: module name -> its layer.
        adapter_name: PEFT's.
        budget: one, or one for each of several groups of modules.
        options: the choices of the method.
        provenance: of scores and plan.

    Raises:
        BudgetError: above what the initial ranks cost, or below one unit; of groups all of these, with their group.
        AllocationError: limits that contradict each other, or groups that do not hold every module once.

    """
    ranks = {name: starting_rank(layer, adapter_name) for name, layer in layers.items()}
    costs = {name: int(layer.in_features + layer.out_features) for name, layer in layers.items()}
    shapes = {name: (int(layer.in_features), int(layer.out_features)) for name, layer in layers.items()}
    weights = unit_weights(shapes, options.cut.cost_weights)
    scalings = [float(layer.scaling[adapter_name]) for layer in layers.values()]
    found = {
        "model": getattr(getattr(model, "config", None), "_name_or_path", "") or type(base_of(model)).__name__,
        "model_type": model_type_of(base_of(model)),
        "base_parameters": base_parameters(model),
        "choices": options.model_dump(mode="json"),
        "versions": versions(),
    }
    limits = options.ranks.model_dump(exclude={"within"} if options.ranks.within is None else None)
    made = {**found, **provenance}
    if options.start.factors == "fresh" and max(scalings) != min(scalings):
        raise AllocationError(
            f"the adapter's modules are scaled by {min(scalings):g} to {max(scalings):g} (alpha_pattern, rank_pattern), which a "
            "fresh start does not keep; use one scale, or factors='kept'"
        )
    whole = InitialAdapter(ranks, costs, budget_text(budget), 0, limits, max(scalings), made, weights)
    if isinstance(budget, Budget):
        return _with_budget(whole, budget, options)
    groups, findings = {}, Findings()
    for group, names in modules_of_groups(costs, budget).items():
        with findings.check(), of_group(group):
            groups[group] = _with_budget(_of(whole, names), budget[group], options)
    findings.raise_all()
    counts = {group: CutRules(one, options, _TRIAL).counts_units for group, one in groups.items()}
    check_one_kind(counts, "units of rank (cut.budget_in)")
    return replace(whole, parameters=sum(one.parameters for one in groups.values()), groups=groups)


_TRIAL = CutSchedule(0, 1, 1)


def _of(whole: InitialAdapter, names: Sequence[str]) -> InitialAdapter:
    """The same of some of the modules."""
    ranks, costs = ({name: of[name] for name in names} for of in (whole.ranks, whole.costs))
    return replace(whole, ranks=ranks, costs=costs, weights={n: whole.weights[n] for n in names if n in whole.weights})


def _with_budget(offered: InitialAdapter, budget: Budget, options: Choices) -> InitialAdapter:
    """The adapter with what its budget means, which is tried on equal scores."""
    ranks, costs, weights = offered.ranks, offered.costs, offered.weights
    start, highest = total(ranks, costs), max(ranks.values())
    if budget.counts_units:  # of the units that there are: a small side may have lowered a rank
        units = sum(ranks.values())
        parameters = start * budget.units(units) // units
    elif weights and budget.kind == "total rank":
        # The sum of what units weigh (`target_total_rank` of IGU-LoRA's code): the share of it that is asked for.
        parameters = math.floor(start * budget.value / Fraction(total(ranks, weights)))
    else:
        parameters = budget.parameters(costs, base_parameters=offered.provenance["base_parameters"])
    if parameters > start:
        raise BudgetError(
            f"budget {budget} is {parameters:,} parameters, but the adapter starts with {start:,} (rank {highest}); raise r of "
            "its LoraConfig, best to half as much again as the budget's mean rank, or ask for less"
        )
    initial = replace(offered, budget=str(budget), parameters=parameters)
    # The limits are tried on equal scores now, not after the training.
    equal = uniform_scores(costs, ranks, offered.provenance)
    allocate(equal, initial.asked if budget.counts_units else parameters, **offered.limits)
    rules = CutRules(replace(initial, provenance=equal.provenance), options, _TRIAL)
    # Without `fill` a walk over equal scores may stop at a dear unit that stands first; what is asked is whether one is paid for.
    if not (rules.last_plan(equal.scores).total_rank if options.cut.fill else rules.pays_for_a_unit):
        raise BudgetError(f"budget {budget} pays for no unit of rank in this curve; ask for more")
    return initial
