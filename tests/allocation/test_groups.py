"""A budget for each group of modules: exact in each, every module in exactly one."""

from typing import Any

import numpy as np
import pytest

import lorank
from lorank import ImportanceScores, RankPlan
from lorank.budget import Budget
from lorank.errors import AllocationError, BudgetError, LorankWarning
from lorank.findings import SeveralFindings

COSTS = {
    **{f"model.vision_model.layers.{k}.{part}": 30 for k in range(2) for part in ("q_proj", "v_proj")},
    **{f"model.language_model.layers.{k}.{part}": 50 for k in range(3) for part in ("q_proj", "up_proj")},
}
SOURCE = np.random.default_rng(0)
UNITS = ImportanceScores({name: SOURCE.random(4) for name in COSTS}, COSTS, provenance={"base_parameters": 100_000})
MODULES = ImportanceScores(
    {name: SOURCE.random(1) + 0.1 for name in COSTS},
    COSTS,
    max_ranks=dict.fromkeys(COSTS, 10),
    resamples={"halves": {name: SOURCE.random(2) + 0.1 for name in COSTS}},
)
TOWERS = {"vision_model": "r=2", "language_model": 800}


def of(scores: ImportanceScores, group: str) -> ImportanceScores:
    """A group's scores as if there were nothing else."""
    names = [name for name in COSTS if group in name]
    return ImportanceScores(
        {name: scores.scores[name] for name in names},
        {name: COSTS[name] for name in names},
        provenance=scores.provenance,
        max_ranks=None if scores.max_ranks is None else dict.fromkeys(names, 10),
    )


@pytest.mark.parametrize("scores", [UNITS, MODULES], ids=["units", "modules"])
@pytest.mark.parametrize("limits", [{}, {"max_rank": 3, "min_rank": 1}, {"within": 2.0}], ids=str)
def test_each_group_is_allocated_as_if_it_were_alone(
    scores: ImportanceScores, limits: dict[str, Any], tmp_path: Any
) -> None:
    plan = lorank.allocate(scores, TOWERS, **limits)
    apart = {group: lorank.allocate(of(scores, group), budget, **limits) for group, budget in TOWERS.items()}
    assert plan.ranks == {**apart["vision_model"].ranks, **apart["language_model"].ranks}
    assert list(plan.ranks) == list(COSTS)
    assert plan.budget_parameters == 2 * 4 * 30 + 800
    assert plan.budget == "vision_model: r=2, language_model: 800"
    assert plan.provenance["scores"] == scores.fingerprint
    groups = plan.provenance["groups"]
    for group, own in apart.items():
        assert groups[group]["spent"] == own.spent <= groups[group]["parameters"] == own.budget_parameters
        assert groups[group]["modules"] == len(own.ranks)
        assert ("stability" in groups[group]) == scores.of_modules
    plan.save(tmp_path / "plan.json")
    assert RankPlan.load(tmp_path / "plan.json") == plan


def test_one_group_of_all_is_the_plan_without_groups() -> None:
    whole = lorank.allocate(UNITS, "r=2")
    plan = lorank.allocate(UNITS, {r"model\..*": "r=2"})
    assert (plan.ranks, plan.budget_parameters) == (whole.ranks, whole.budget_parameters)


def test_units_are_counted_in_each_group() -> None:
    plan = lorank.allocate(UNITS, {"vision_model": "keep=50%", "language_model": "beta=0.25"})
    ranks = {group: sum(rank for name, rank in plan.ranks.items() if group in name) for group in TOWERS}
    assert ranks == {"vision_model": 8, "language_model": 18}
    assert plan.budget_units == plan.total_rank == 26


@pytest.mark.parametrize(
    ("budgets", "error", "said"),
    [
        ({"vision_model": "r=2"}, AllocationError, "language_model.layers.0.q_proj' is in no group of 'vision_model'"),
        ({**TOWERS, "q_proj": 90}, AllocationError, r"q_proj' is in 2 groups \('vision_model', 'q_proj'\)"),
        ({**TOWERS, "audio": "r=1"}, AllocationError, "group 'audio' has no module; the first module is"),
        ({**TOWERS, "(": "r=1"}, AllocationError, r"group '\(' is no regular expression"),
        ({}, AllocationError, "budgets of groups are empty"),
        (
            {"vision_model": "keep=50%", "language_model": "r=1"},
            BudgetError,
            "of group 'vision_model' counts units of rank, and that of 'language_model' parameters",
        ),
        (
            {"vision_model": "r=2", "language_model": "x"},
            BudgetError,
            "group 'language_model': budget 'x' cannot be read",
        ),
        (
            {"vision_model": 20, "language_model": "r=1"},
            BudgetError,
            "group 'vision_model': budget '20' is 20 parameters, below one unit of rank",
        ),
    ],
)
def test_what_is_no_partition_is_refused(budgets: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        lorank.allocate(UNITS, budgets)


def test_what_is_wrong_with_several_groups_is_said_at_once() -> None:
    for budgets in ({"vision_model": "x", "language_model": "y"}, {"vision_model": 20, "language_model": 30}):
        with pytest.raises(SeveralFindings, match=r"(?s)group 'vision_model': .*group 'language_model': "):
            lorank.allocate(UNITS, budgets)


def test_warnings_name_their_group() -> None:
    with pytest.warns(
        LorankWarning, match=r"group 'vision_model': the budget 9000 = 9,000 parameters pays for more units"
    ):
        lorank.allocate(UNITS, {"vision_model": 9000, "language_model": 800})


def test_elsewhere_one_budget_is_asked_for() -> None:
    with pytest.raises(BudgetError, match=r"budget names 2 groups of modules, and here is one budget for all"):
        Budget.parse(TOWERS)
