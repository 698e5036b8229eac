"""Plans whose ranks stay near the mean rank that the budget buys."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorank import AllocationError, ImportanceScores, allocate
from lorank.allocation.bounds import rank_bounds

pytestmark = pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")


@pytest.mark.parametrize(
    ("mean", "within", "multiple_of", "bounds"),
    [
        (4, 2.0, 1, (2, 8)),
        (2, 2.0, 1, (1, 4)),
        (3, 2.0, 1, (2, 6)),  # 1.5 is no rank
        (1, 2.0, 1, (0, 2)),  # half of a unit rounds to rank 0
        (Fraction(3, 2), 2.0, 1, (1, 3)),
        (Fraction(1, 4), 2.0, 1, (0, 1)),
        (8, 2.0, 4, (4, 16)),
        (4, 2.0, 4, (0, 8)),
        (20, 1.15, 1, (18, 23)),  # 1.15 is less in binary
    ],
)
def test_bounds_of_a_mean_rank(mean: Fraction, within: float, multiple_of: int, bounds: tuple[int, int]) -> None:
    assert rank_bounds(Fraction(mean), within, multiple_of) == bounds


@settings(deadline=None)
@given(
    st.data(), st.sampled_from([1.2, 1.5, 2.0, 3.0]), st.sampled_from(["score", "score-per-parameter"]), st.booleans()
)
def test_the_budget_is_exact_and_the_bounds_hold(data: st.DataObject, within: float, rank_by, of_modules: bool) -> None:
    names = [f"layer.{k}" for k in range(data.draw(st.integers(2, 6)))]
    costs = {name: data.draw(st.integers(1, 40)) for name in names}
    most = {name: data.draw(st.sampled_from([1, 4, 30])) for name in names}
    values = st.floats(0, 1e3) if of_modules else st.floats(-1e3, 1e3)
    scores = {name: np.array(data.draw(st.lists(values, min_size=n, max_size=n))) for name, n in most.items()}
    if of_modules:
        scores = {name: 1e-9 + each[:1] for name, each in scores.items()}
    made = ImportanceScores(scores, costs, max_ranks=most if of_modules else None)
    budget = data.draw(st.integers(max(costs.values()), 10 * sum(costs.values())))
    mean = Fraction(budget, sum(costs.values()))
    try:
        low, high = rank_bounds(mean, within)
    except AllocationError as error:
        with pytest.raises(AllocationError, match="raise within to"):
            allocate(made, budget, rank_by=rank_by, within=within)
        allocate(made, budget, rank_by=rank_by, within=float(str(error).split("raise within to ")[1].split()[0]))
        return
    plan = allocate(made, budget, rank_by=rank_by, within=within)
    assert plan.spent <= budget
    for name, rank in plan.ranks.items():
        assert min(low, most[name]) <= rank <= min(high, most[name])
        assert low in (0, rank) or low > most[name] or float(mean) / within <= rank + 1e-9
        assert rank <= max(1, float(mean) * within + 1e-9)
        assert rank == min(high, most[name]) or plan.spent + costs[name] > budget  # no unit more would fit
    assert plan.provenance["within"] == within


def test_units_of_a_budget_in_units_are_bounded_too() -> None:
    scores = ImportanceScores({"a": np.arange(8) + 100.0, "b": np.arange(8.0)}, {"a": 2, "b": 30})
    assert allocate(scores, "keep=50%").ranks == {"a": 8, "b": 0}
    assert allocate(scores, "keep=50%", within=2.0).ranks == {"a": 6, "b": 2}


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"within": 1.0}, "within is 1.0; allowed: numbers above 1"),
        ({"within": True}, "within is True"),
        ({"within": 1.1, "multiple_of": 4}, "raise within to 1.5 or more"),
        ({"within": 2.0, "max_rank": 2}, "max_rank is 2, but within 2 of the mean rank 6 allows ranks from 3 to 12"),
        ({"within": 2.0, "min_rank": 13}, "min_rank is 13, but"),
    ],
)
def test_what_is_refused(limits: dict, said: str) -> None:
    scores = ImportanceScores({name: np.arange(20.0) for name in "ab"}, {"a": 3, "b": 5})
    with pytest.raises(AllocationError, match=said):
        allocate(scores, "r=6", **limits)


def test_bounds_are_those_that_the_scores_were_made_by_unless_others_are_given() -> None:
    values = {"a": np.array([100.0]), "b": np.array([1.0])}
    made = ImportanceScores(
        values, {"a": 2, "b": 2}, None, {"choices": {"ranks": {"within": 2.0}}}, max_ranks={"a": 64, "b": 64}
    )
    plain = ImportanceScores(values, {"a": 2, "b": 2}, max_ranks={"a": 64, "b": 64})
    assert allocate(made, 32).ranks == allocate(plain, 32, within=2.0).ranks == {"a": 12, "b": 4}
    assert allocate(made, 32).provenance["within"] == 2.0
    assert allocate(made, 32, within=math.inf).ranks == allocate(plain, 32).ranks == {"a": 16, "b": 0}
    assert "within" not in allocate(made, 32, within=math.inf).provenance
