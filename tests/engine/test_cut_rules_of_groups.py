"""Cuts while training where each group of modules has a budget: those of separate allocations, at the same steps."""

from typing import Any

import numpy as np
import pytest
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tests.engine.test_initial_adapter import Blocks

from lorank.allocation.schedule import CutSchedule
from lorank.budget import read_budgets
from lorank.engine.cut_rules import InitialAdapter, cut_rules
from lorank.engine.initial_adapter import read_adapter
from lorank.errors import AllocationError, BudgetError
from lorank.findings import SeveralFindings
from lorank.methods.choose import choose_options

SCHEDULE = CutSchedule(0, 8, 2)


def read(
    budget: Any, method: str, preset: str = "recommended", only: str = "", **options: Any
) -> tuple[InitialAdapter, Any]:
    model: PeftModel = get_peft_model(Blocks(), LoraConfig(r=6, target_modules=["gate", "q", "up"]))  # type: ignore[arg-type]
    parts = model.get_base_model().named_modules()
    layers = {name: part for name, part in parts if isinstance(part, LoraLayer) and only in name}
    choices = choose_options(method, preset, options).choices
    return read_adapter(model, layers, "default", read_budgets(budget), choices, {}), choices


@pytest.mark.parametrize(
    ("method", "preset", "budgets"),
    [
        ("adalora", "recommended", {"0": "r=2", "1": "300"}),
        ("adalora", "paper", {"0": "r=2", "1": "rank=6"}),  # counts ranks
        ("igu-lora", "official", {"0": "rank=9", "1": "rank=14"}),  # weighs units
        ("igu-lora", "recommended", {"0": "beta=0.5", "1": "keep=25%"}),
        ("i-lora", "paper", {"0": "r=1", "1": "400"}),
    ],
)
def test_each_group_is_cut_as_if_it_were_alone(method: str, preset: str, budgets: dict[str, str]) -> None:
    initial, choices = read(budgets, method, preset)
    rules = cut_rules(initial, choices, SCHEDULE)
    source = np.random.default_rng(0)
    alive = {name: source.random(rank) for name, rank in initial.ranks.items()}
    apart = {}
    for group, budget in budgets.items():
        own, _ = read(budget, method, preset, only=f"layers.{group}.")
        apart[group] = cut_rules(own, choices, SCHEDULE)
    scores = {group: {name: alive[name] for name in one.initial.ranks} for group, one in apart.items()}
    for step in (2, 4, 6):
        expected = [one.ranks_at(step, scores[group]) for group, one in apart.items()]
        assert rules.ranks_at(step, alive) == {**expected[0], **expected[1]}
        assert rules.budget_at(step) == sum(one.budget_at(step) for one in apart.values())
    plan, plans = rules.last_plan(alive), {group: one.last_plan(scores[group]) for group, one in apart.items()}
    assert plan.ranks == {**plans["0"].ranks, **plans["1"].ranks}
    assert plan.budget_parameters == sum(one.budget_parameters for one in plans.values())
    for group, one in plans.items():
        assert plan.provenance["groups"][group] == {**one.budget_record, "modules": 3}
    asked = {"asked": f"0: {budgets['0']}, 1: {budgets['1']}"}
    assert rules.plan(plan.ranks).budget_record == plan.budget_record | asked
    assert rules.plan(plan.ranks).spending == plan.spending


def test_nothing_is_cut_before_every_group_has_a_score() -> None:
    initial, choices = read({"0": "r=2", "1": "r=2"}, "adalora")
    rules = cut_rules(initial, choices, SCHEDULE)
    alive = {name: np.full(rank, float("layers.0" in name)) for name, rank in initial.ranks.items()}
    assert rules.unscored(alive) == " of group '1'"
    assert rules.unscored({name: values + 1 for name, values in alive.items()}) is None


def test_what_is_wrong_names_its_group_and_is_said_at_once() -> None:
    with pytest.raises(SeveralFindings) as caught:
        read({"0": "r=7", "1": "3"}, "adalora")
    high, low = map(str, caught.value.errors)
    assert high.startswith("group '0': budget r=7 is 791 parameters, but the adapter starts with 593 (rank 6)")
    assert low.startswith("group '1': budget '3' is 3 parameters, below one unit of rank")
    with pytest.raises(AllocationError, match=r"'layers\.1\.gate' is in no group of '0'"):
        read({"0": "r=1"}, "adalora")
    with pytest.raises(
        BudgetError, match=r"of group '0' counts units of rank \(cut\.budget_in\), and that of '1' parameters"
    ):
        read({"0": "r=2", "1": "300"}, "adalora", "paper")
