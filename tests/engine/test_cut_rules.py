"""What the last cut says about its budget."""

import numpy as np
import pytest

from lorank.allocation.schedule import CutSchedule
from lorank.engine.cut_rules import CutRules, InitialAdapter
from lorank.errors import LorankWarning
from lorank.methods.choose import choose_options

RANKS, COSTS = {"wide": 4, "narrow": 4}, {"wide": 30, "narrow": 10}
ALIVE = {"wide": np.array([9.0, 8.0, 7.0, 6.0]), "narrow": np.array([1.0, 2.0, 3.0, 4.0])}


def rules(budget: str, parameters: int, **options) -> CutRules:
    choices = choose_options("adalora", "paper", {"budget_in": "ranks", **options}).choices
    limits = choices.ranks.model_dump()
    return CutRules(InitialAdapter(RANKS, COSTS, budget, parameters, limits, 2.0, {}), choices, CutSchedule(0, 1, 1))


def test_a_budget_in_ranks_says_units_where_these_cost_more_than_its_mean() -> None:
    plan = rules("rank=4", 80).last_plan(ALIVE)
    assert (plan.ranks, plan.spent, plan.budget_units) == ({"wide": 4, "narrow": 0}, 120, 4)
    assert plan.spending == "4 units of rank (4 asked for), 120 parameters"


def test_a_budget_in_parameters_stays_the_limit() -> None:
    plan = rules("80", 80).last_plan(ALIVE)
    assert (plan.spent, plan.budget_units, plan.spending) == (80, None, "80 of 80 parameters")


def test_equal_scores_are_said() -> None:
    with pytest.warns(LorankWarning, match="every score is equal"):
        rules("rank=4", 80).last_plan({name: np.zeros(4) for name in RANKS})
