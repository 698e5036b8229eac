"""Scores that say nothing are said, and floors that a module cannot have are lowered to what it can."""

import numpy as np
import pytest

import lorank
from lorank.allocation.top_b import uniform_scores
from lorank.errors import AllocationError, LorankWarning
from lorank.scores import ImportanceScores

COSTS = {"a": 10, "b": 10}


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0])
def test_scores_that_are_all_equal_are_said(value: float) -> None:
    scores = ImportanceScores({"a": np.full(3, value), "b": np.full(3, value)}, COSTS)
    with pytest.warns(LorankWarning, match="every score is equal .* says nothing about the layers"):
        lorank.allocate(scores, 40)


def test_equal_scores_of_modules_are_said() -> None:
    scores = ImportanceScores({"a": np.ones(1), "b": np.ones(1)}, COSTS, None, {}, {"a": 3, "b": 3})
    with pytest.warns(
        LorankWarning, match=r"every score is equal \(1\), .*look at what was scored, or use method lora"
    ):
        assert lorank.allocate(scores, 40).ranks == {"a": 2, "b": 2}


def test_equal_scores_that_are_meant_are_not() -> None:
    assert lorank.allocate(uniform_scores(COSTS, 3), 40).ranks == {"a": 2, "b": 2}
    assert lorank.allocate(ImportanceScores({"a": np.ones(3)}, {"a": 10}), 20).ranks == {
        "a": 2
    }  # nothing to choose from


@pytest.mark.parametrize("of_modules", [False, True])
@pytest.mark.parametrize(("multiple_of", "least"), [(1, {"a": 2, "gate": 1}), (2, {"a": 2, "gate": 0})])
def test_a_floor_above_the_smaller_side_is_that_side(of_modules: bool, multiple_of: int, least: dict[str, int]) -> None:
    costs, largest = {"a": 10, "gate": 6}, {"a": 4, "gate": 1}
    values = (
        {"a": np.array([2.0]), "gate": np.array([1.0])} if of_modules else {"a": np.arange(4.0), "gate": np.ones(1)}
    )
    scores = ImportanceScores(values, costs, None, {}, largest if of_modules else None)
    limits = {"min_rank": 2, "multiple_of": multiple_of}
    floor = sum(costs[name] * rank for name, rank in least.items())
    assert lorank.allocate(scores, floor, **limits).ranks == least
    with pytest.raises(AllocationError, match="min_rank is 6"):
        lorank.allocate(scores, 99, min_rank=6, multiple_of=multiple_of)
