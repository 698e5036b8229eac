"""The margin of a plan by hand."""

from typing import Any

import numpy as np
import pytest

import lorank
from lorank.page.budget_plans import plans_of_budgets
from lorank.page.margin import plan_margin
from lorank.scores import ImportanceScores

COSTS = {"a": 1, "b": 1, "c": 2}


def scores(errors: dict[str, list[float]] | None = None) -> ImportanceScores:
    values = {"a": [4.0, 1.0], "b": [3.0, 2.0], "c": [6.0, 0.0]}
    arrays = {name: np.array(one) for name, one in values.items()}
    return ImportanceScores(arrays, COSTS, errors and {name: np.array(one) for name, one in errors.items()})


def test_the_threshold_is_between_the_last_that_is_in_and_the_first_that_is_not() -> None:
    made = scores({"a": [1.0, 0.1], "b": [0.5, 1.0], "c": [1.0, 0.0]})
    plan = lorank.allocate(made, 4)  # 6 of c, 4 of a and 3 of b
    margin = plan_margin(plan, made, shown=2)
    assert margin is not None
    assert margin.threshold == 2.5
    assert [(unit.module, unit.unit, unit.kept) for unit in margin.units] == [
        ("a", 0, True), ("b", 0, True), ("b", 1, False), ("a", 1, False),
    ]  # fmt: skip
    assert [unit.distance for unit in margin.units] == pytest.approx([1.5, 1.0, -0.5, -15.0])
    assert (margin.within, margin.total) == (3, 6)  # a's first, both of b


def test_scores_per_parameter_are_compared_per_parameter() -> None:
    made = scores()
    plan = lorank.allocate(made, 2, rank_by="score-per-parameter")  # 4 of a; then 6 / 2 of c does not fit, 3 of b does
    margin = plan_margin(plan, made)
    assert margin is not None
    assert margin.per_parameter
    assert {unit.score for unit in margin.units if unit.module == "c"} == {3.0, 0.0}
    assert margin.within is None


def test_there_is_no_margin_where_all_or_other_scores_are_kept() -> None:
    made = scores()
    assert plan_margin(lorank.allocate(made, 8), made) is None
    other = ImportanceScores({name: 2 * one for name, one in made.scores.items()}, COSTS)
    assert plan_margin(lorank.allocate(other, 4), made) is None


@pytest.mark.parametrize("limits", [{"max_rank": 1}, {"scope": "layer"}, {"within": 2.0}, {"multiple_of": 2}])
def test_there_is_no_one_threshold_where_limits_decide(limits: dict[str, Any]) -> None:
    made = scores()
    assert plan_margin(lorank.allocate(made, 4, **limits), made) is None


def test_groups_have_no_threshold_in_common_and_no_other_budgets() -> None:
    made = scores()
    plan = lorank.allocate(made, {"a|b": 2, "c": 2})
    assert plan_margin(plan, made) is None
    assert plans_of_budgets(plan, made) == []
