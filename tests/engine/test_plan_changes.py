"""How much plans change: over windows, and within the standard errors of their scores."""

import json
import warnings
from typing import Any

import numpy as np
import pytest

from lorank.allocation.schedule import CutSchedule
from lorank.engine.cut_rules import CutRules, InitialAdapter
from lorank.engine.options import ScoringSetChoices, StopWhenStable
from lorank.engine.plan_changes import NOISY, PlanChanges, warn_of_noise
from lorank.errors import LorankWarning
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

COSTS = {"a": 2, "b": 3, "c": 5}


def plan(a: int, b: int, c: int) -> RankPlan:
    return RankPlan({"a": a, "b": b, "c": c}, COSTS, "40", 40)


def test_plans_that_keep_a_number_of_units_may_spend_less_from_window_to_window() -> None:
    changes = PlanChanges(StopWhenStable(share=0.3, window=2, windows=2))
    for ranks in ({"a": 0, "b": 0, "c": 2}, {"a": 2, "b": 0, "c": 0}):
        spent = sum(rank * COSTS[name] for name, rank in ranks.items())
        changes.compare(RankPlan(ranks, COSTS, "keep=50%", spent, budget_units=2))
    assert changes.moved_shares == [1.0]


def test_the_share_that_moved_is_that_of_the_new_plans_parameters() -> None:
    changes = PlanChanges(StopWhenStable(share=0.3, window=2, windows=2))
    assert [number for number in range(1, 8) if changes.is_due(number)] == [2, 4, 6]
    changes.compare(plan(5, 5, 1))
    assert changes.scalars() == {}
    changes.compare(plan(5, 5, 1))
    assert changes.moved_shares[-1] == 0
    assert not changes.stable  # one window of two
    changes.compare(plan(0, 5, 3))
    assert changes.moved_shares[-1] == (2 * 5) / (5 * 3 + 3 * 5)
    assert not changes.stable
    changes.compare(plan(1, 5, 3))
    assert changes.moved_shares[-1] == 2 / (2 + 5 * 3 + 3 * 5)
    assert not changes.stable  # the window before moved a third
    changes.compare(plan(1, 5, 3))
    assert changes.moved_shares[-1] == 0
    assert changes.stable


def test_without_a_rule_nothing_is_compared() -> None:
    changes = PlanChanges(None)
    assert not any(changes.is_due(number) for number in range(1, 30))
    assert not changes.stable


def test_a_share_of_just_the_bound_is_not_stable() -> None:
    changes = PlanChanges(StopWhenStable(share=0.5, window=1, windows=1))
    changes.compare(plan(5, 0, 0))
    changes.compare(plan(5, 0, 2))
    assert changes.moved_shares[-1] == 0.5
    assert not changes.stable


def test_a_restored_state_goes_on() -> None:
    rule = StopWhenStable(share=0.3, window=2, windows=2)
    first, second = PlanChanges(rule), PlanChanges(rule)
    for one in (plan(5, 5, 1), plan(5, 4, 1)):
        first.compare(one)
    second.load_state_dict(json.loads(json.dumps(first.state_dict(), sort_keys=True)))
    for one in (first, second):
        one.compare(plan(5, 4, 2))
    assert second.moved_shares == first.moved_shares
    assert second.stable is first.stable is True
    assert first.moved_shares is not second.moved_shares


def rules(names: list[str], units: int, cost: int = 10) -> CutRules:
    limits: dict[str, Any] = {"max_rank": None, "min_rank": 0, "multiple_of": 1, "rank_by": "score", "scope": "global"}
    ranks, costs = dict.fromkeys(names, 1), dict.fromkeys(names, cost)
    initial = InitialAdapter(ranks, costs, str(units * cost), units * cost, limits, 1.0, {})
    return CutRules(initial, ScoringSetChoices(), CutSchedule(1, 10, 10))


def scores(values: np.ndarray, errors: np.ndarray | float) -> ImportanceScores:
    names = [f"m{k:03}" for k in range(len(values))]
    spread = np.broadcast_to(errors, values.shape)
    return ImportanceScores(
        {name: values[k : k + 1] for k, name in enumerate(names)},
        dict.fromkeys(names, 10),
        {name: spread[k : k + 1].copy() for k, name in enumerate(names)},
        {"scoring_batches": 12, "scoring_examples": 3_000},
    )


def moved(values: np.ndarray, errors: np.ndarray | float, units: int) -> float:
    given = scores(values, errors)
    return warn_of_noise(given, rules(list(given.scores), units))["moved_by_standard_errors"]


def test_exact_scores_move_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", LorankWarning)
        assert moved(np.linspace(1, 2, 50), 0.0, 20) == 0
        assert moved(np.linspace(1, 2, 50), 1e-4, 20) == 0  # a fifth of a percent of the gap between two


def test_scores_that_are_all_noise_move_what_chance_leaves() -> None:
    """Of u units drawn from n another draw leaves out (n - u) / n on average."""
    values = 1 + 1e-9 * np.arange(400)
    for units in (100, 300):
        with pytest.warns(LorankWarning, match="the scoring set is small for this plan") as said:
            share = moved(values, 0.2, units)
        assert share == pytest.approx(1 - units / 400, abs=0.03)
        (message,) = (str(one.message) for one in said)
        assert (
            "after 12 scoring batches from a set of 3,000 examples the standard error of a score is 20% of it (median)"
            in message
        )
        assert f"would move {share:.0%} of the plan's parameters" in message


def test_only_units_near_the_threshold_move() -> None:
    """Of 100 units 20 are nearly equal, and 10 of these are in the plan of 50: half of the ten move, a tenth of the plan."""
    values = np.concatenate([np.full(40, 9.0), 5 + 1e-9 * np.arange(20), np.full(40, 1.0)])
    errors = np.where((values > 4) & (values < 6), 0.1, 1e-9)
    assert NOISY == 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorankWarning)
        assert moved(values, errors, 50) == pytest.approx(0.1, abs=0.03)


def test_the_same_scores_are_judged_alike() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LorankWarning)
        values = np.random.default_rng(0).random(60)
        assert moved(values, 0.1, 20) == moved(values, 0.1, 20) > 0
