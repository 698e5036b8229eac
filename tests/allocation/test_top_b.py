import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorank import ImportanceScores, LorankError, allocate
from lorank.allocation.top_b import best_units, top_ranks, uniform_scores
from lorank.errors import BudgetError, LorankWarning

pytestmark = pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")
# Quarters: sums, means of blocks and powers of two of them are exact, so equal stays equal.
quarters = st.integers(-40, 40).map(lambda k: k / 4)


@st.composite
def score_sets(draw: st.DrawFn, equal_costs: bool = False) -> ImportanceScores:
    modules, units = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    names = [f"model.layer.{k}.{part}" for k in range(modules) for part in ("q", "up")][:modules]
    values = {name: np.array(draw(st.lists(quarters, min_size=units, max_size=units))) for name in names}
    costs = {name: 4 if equal_costs else draw(st.integers(1, 9)) for name in names}
    return ImportanceScores(values, costs)


def budgets(scores: ImportanceScores) -> st.SearchStrategy[int]:
    return st.integers(min(scores.unit_costs.values()), 6 * sum(scores.unit_costs.values()) + 3)


@settings(deadline=None)
@given(
    st.data(),
    st.sampled_from(["score", "score-per-parameter"]),
    st.sampled_from(["global", "layer"]),
    st.integers(1, 3),
)
def test_never_over_budget_and_no_unit_more_fits(data: st.DataObject, rank_by, scope, multiple_of: int) -> None:
    scores = data.draw(score_sets())
    units = len(next(iter(scores.scores.values())))
    budget = data.draw(budgets(scores))
    cap = data.draw(st.none() | st.integers(multiple_of, 8))
    limits = {"rank_by": rank_by, "scope": scope, "multiple_of": multiple_of, "max_rank": cap}
    if budget < multiple_of * min(scores.unit_costs.values()):
        with pytest.raises(BudgetError, match="units of rank of the cheapest module"):
            allocate(scores, budget, **limits)
        return
    plan = allocate(scores, budget, **limits)
    assert plan.spent == sum(rank * scores.unit_costs[name] for name, rank in plan.ranks.items()) <= budget
    for name, rank in plan.ranks.items():
        assert rank % multiple_of == 0
        assert rank <= min(units, cap or units)
        could_grow = rank + multiple_of <= min(units, cap or units)
        assert not (could_grow and plan.spent + multiple_of * scores.unit_costs[name] <= budget)


@settings(deadline=None)
@given(st.data())
def test_spending_grows_with_the_budget(data: st.DataObject) -> None:
    scores = data.draw(score_sets())
    low, high = sorted((data.draw(budgets(scores)), data.draw(budgets(scores))))
    assert allocate(scores, low).spent <= allocate(scores, high).spent


@settings(deadline=None)
@given(st.data())
def test_every_rank_grows_with_the_budget_where_units_cost_the_same(data: st.DataObject) -> None:
    scores = data.draw(score_sets(equal_costs=True))
    low, high = sorted((data.draw(budgets(scores)), data.draw(budgets(scores))))
    small, large = allocate(scores, low), allocate(scores, high)
    assert all(small.ranks[name] <= large.ranks[name] for name in small.ranks)


@settings(deadline=None)
@given(
    st.data(),
    st.randoms(use_true_random=False),
    st.floats(1e-3, 1e3),
    st.sampled_from(["global", "layer"]),
)
def test_order_of_modules_and_unit_of_scores_do_not_matter(
    data: st.DataObject, source: random.Random, factor: float, scope
) -> None:
    scores = data.draw(score_sets())
    budget = data.draw(budgets(scores))
    names = list(scores.scores)
    source.shuffle(names)
    shuffled = ImportanceScores(
        {
            name: scores.scores[name][source.sample(range(len(scores.scores[name])), len(scores.scores[name]))] * factor
            for name in names
        },
        {name: scores.unit_costs[name] for name in names},
    )
    assert allocate(scores, budget, scope=scope).ranks == allocate(shuffled, budget, scope=scope).ranks


@settings(deadline=None)
@given(st.data())
def test_limits_are_honoured(data: st.DataObject) -> None:
    scores = data.draw(score_sets())
    units, total = len(next(iter(scores.scores.values()))), sum(scores.unit_costs.values())
    least = data.draw(st.integers(0, units))
    most = data.draw(st.integers(max(1, least), units))
    plan = allocate(scores, least * total + data.draw(st.integers(9, 40)), min_rank=least, max_rank=most)
    assert all(least <= rank <= most for rank in plan.ranks.values())


def test_by_hand() -> None:
    scores = ImportanceScores(
        {"l.0.q": np.array([5.0, 1.0]), "l.0.up": np.array([6.0, 4.0])}, {"l.0.q": 2, "l.0.up": 5}
    )
    assert allocate(scores, 12).ranks == {"l.0.q": 1, "l.0.up": 2}
    assert allocate(scores, 11).ranks == {
        "l.0.q": 2,
        "l.0.up": 1,
    }  # the second unit of up no longer fits, one of q does
    assert allocate(scores, 4).ranks == {"l.0.q": 2, "l.0.up": 0}
    # Per parameter: q is worth 2.5 and 0.5, up 1.2 and 0.8.
    assert allocate(scores, 7, rank_by="score-per-parameter").ranks == {"l.0.q": 1, "l.0.up": 1}
    assert allocate(scores, 6, rank_by="score-per-parameter").ranks == {"l.0.q": 2, "l.0.up": 0}


def test_the_quantile_of_the_paper() -> None:
    # t = 8 units of equal cost, beta = 0.5: the floor(beta t) = 4 smallest are dropped.
    scores = ImportanceScores(
        {"l.0": np.array([1.0, 2, 3, 4]), "l.1": np.array([2.5, 3.5, 0.5, 9])}, {"l.0": 7, "l.1": 7}
    )
    assert allocate(scores, "beta=0.5").ranks == {"l.0": 2, "l.1": 2}
    # floor(0.3 * 8) = 2 are dropped.
    assert allocate(scores, "beta=0.3").total_rank == 6
    assert allocate(scores, "beta=0.25").total_rank == 6


def test_ties_spread_evenly_from_the_first_layer_on() -> None:
    names = [f"l.{k}.q" for k in (0, 2, 10)]
    plan = allocate(uniform_scores(dict.fromkeys(names, 4), 8), 7 * 4)
    assert plan.ranks == {"l.0.q": 3, "l.2.q": 2, "l.10.q": 2}


def test_a_share_for_each_layer() -> None:
    scores = ImportanceScores({"l.0.q": np.array([9.0, 8.0]), "l.1.q": np.array([2.0, 1.0])}, {"l.0.q": 1, "l.1.q": 1})
    assert allocate(scores, 2).ranks == {"l.0.q": 2, "l.1.q": 0}
    assert allocate(scores, 2, scope="layer").ranks == {"l.0.q": 1, "l.1.q": 1}
    assert allocate(scores, 3, scope="layer").ranks == {"l.0.q": 2, "l.1.q": 1}


@pytest.mark.parametrize(
    "limits",
    [
        {"max_rank": 1, "min_rank": 2},
        {"min_rank": 3},
        {"min_rank": -1},
        {"multiple_of": 0},
        {"min_rank": 1, "multiple_of": 2},
        {"min_rank": 2},
        {"max_rank": 1, "multiple_of": 2},
        {"rank_by": "luck"},
        {"scope": "block"},
    ],
)
def test_limits_that_contradict_each_other_are_refused(limits) -> None:
    scores = ImportanceScores({"a": np.ones(2), "b": np.ones(2)}, {"a": 1, "b": 1})
    with pytest.raises(LorankError):
        allocate(scores, 3, **limits)


def test_a_budget_above_all_units_is_said() -> None:
    scores = ImportanceScores({"a": np.ones(2)}, {"a": 1})
    with pytest.warns(LorankWarning, match="pays for more units"):
        assert allocate(scores, 5).ranks == {"a": 2}


def test_a_cut_counted_in_ranks_is_the_global_top_b() -> None:
    scores = {"a": np.array([5.0, 1.0, 4.0]), "b": np.array([3.0, 2.0])}
    ones = {"a": 1.0, "b": 1.0}
    assert [top_ranks(scores, ones, budget) for budget in (0, 1, 3, 4.9, 9)] == [
        {"a": 0, "b": 0},
        {"a": 1, "b": 0},
        {"a": 2, "b": 1},
        {"a": 2, "b": 2},
        {"a": 3, "b": 2},
    ]
    assert top_ranks(scores, ones, 2, min_rank=1) == {"a": 1, "b": 1}


def test_stopping_at_the_first_unit_that_does_not_fit() -> None:
    """The published codes drop the least important until the rest fits; going on finds cheaper units behind."""
    scores = {"dear": np.array([3.0, 1.0]), "cheap": np.array([4.0, 0.5])}
    costs = {"dear": 3.0, "cheap": 1.0}
    assert top_ranks(scores, costs, 3, fill=False) == {"dear": 0, "cheap": 1}
    assert top_ranks(scores, costs, 3, fill=True) == {"dear": 0, "cheap": 2}


def test_a_harmful_unit_is_no_better_for_costing_more() -> None:
    scores = ImportanceScores({"small": [-1.0, -1.0], "wide": [-1.5, -1.5]}, {"small": 10, "wide": 100})
    assert allocate(scores, 110, rank_by="score-per-parameter").ranks["small"] == 2


def test_best_units_are_given_in_order_and_ties_go_to_the_lower() -> None:
    assert best_units(np.array([1.0, 5.0, 3.0, 5.0]), 3).tolist() == [1, 2, 3]
    assert best_units(np.array([2.0, 2.0, 2.0]), 2).tolist() == [0, 1]
    assert best_units(np.array([2.0]), 0).tolist() == []
