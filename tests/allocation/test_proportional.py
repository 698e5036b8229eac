import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lorank
from lorank.allocation.proportional import proportional_ranks
from lorank.errors import AllocationError, BudgetError, LorankWarning, ScoresError
from lorank.scores import ImportanceScores


@st.composite
def problems(draw: st.DrawFn) -> dict:
    count = draw(st.integers(1, 7))
    names = [f"layer.{k}" for k in range(count)]
    multiple = draw(st.sampled_from([1, 2, 4]))
    floor = draw(st.sampled_from([0, multiple]))
    scores = draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e4]), min_size=count, max_size=count).filter(any))
    costs = {name: draw(st.integers(1, 40)) for name in names}
    least = floor * sum(costs.values())
    return {
        "scores": dict(zip(names, scores, strict=True)),
        "costs": costs,
        "budget": draw(st.integers(max(1, least), least + 2000)),
        "max_ranks": {name: draw(st.integers(4, 40)) for name in names},
        "min_rank": floor,
        "multiple_of": multiple,
    }


def spent(ranks: dict[str, int], costs: dict[str, int]) -> int:
    return sum(rank * costs[name] for name, rank in ranks.items())


@given(problems())
def test_within_the_budget_and_the_limits_and_no_block_more_would_fit(problem: dict) -> None:
    ranks, multiple = proportional_ranks(**problem), problem["multiple_of"]
    left = problem["budget"] - spent(ranks, problem["costs"])
    assert left >= 0
    for name, rank in ranks.items():
        assert problem["min_rank"] <= rank <= problem["max_ranks"][name]
        assert rank % multiple == 0
        full = rank + multiple > problem["max_ranks"][name]
        assert full or problem["costs"][name] * multiple > left


@given(problems(), st.floats(1e-6, 1e6), st.randoms(use_true_random=False))
def test_neither_order_nor_unit_of_the_scores_matters(problem: dict, factor: float, source: random.Random) -> None:
    names = list(problem["scores"])
    source.shuffle(names)
    shuffled = {**problem, "scores": {name: problem["scores"][name] for name in names}}
    assert proportional_ranks(**shuffled) == proportional_ranks(**problem)
    if factor == 2 ** round(np.log2(factor)):  # exact in floating point
        scaled = {name: score * factor for name, score in problem["scores"].items()}
        assert proportional_ranks(**{**problem, "scores": scaled}) == proportional_ranks(**problem)


@given(problems())
def test_of_two_modules_alike_but_for_the_score_the_better_gets_no_less(problem: dict) -> None:
    ranks = proportional_ranks(**problem)
    for one in ranks:
        for other in ranks:
            alike = all(problem[key][one] == problem[key][other] for key in ("costs", "max_ranks"))
            if alike and problem["scores"][one] > problem["scores"][other]:
                assert ranks[one] >= ranks[other]


def test_shares_that_are_whole_are_met_exactly() -> None:
    costs = dict.fromkeys("abc", 10)
    assert proportional_ranks({"a": 1.0, "b": 2.0, "c": 5.0}, costs, 80, dict.fromkeys("abc", 99)) == {
        "a": 1,
        "b": 2,
        "c": 5,
    }


def test_the_largest_remainder_gets_the_rest() -> None:
    # Shares 3.2, 3.7 and 3.1 of 10.
    scores = {"a": 3.2, "b": 3.7, "c": 3.1}
    assert proportional_ranks(scores, dict.fromkeys("abc", 1), 10, dict.fromkeys("abc", 99)) == {"a": 3, "b": 4, "c": 3}


def test_what_a_cap_cuts_off_goes_to_the_others_in_proportion() -> None:
    scores = {"a": 100.0, "b": 2.0, "c": 1.0}
    assert proportional_ranks(scores, dict.fromkeys("abc", 1), 13, {"a": 4, "b": 99, "c": 99}) == {
        "a": 4,
        "b": 6,
        "c": 3,
    }


def test_a_dear_module_is_paid_for_by_what_it_costs() -> None:
    ranks = proportional_ranks({"a": 1.0, "b": 1.0}, {"a": 10, "b": 30}, 400, {"a": 99, "b": 99})
    assert ranks == {"a": 10, "b": 10}


def test_worthless_modules_get_only_what_nobody_else_can_take() -> None:
    ranks = proportional_ranks({"a": 0.0, "b": 1.0}, {"a": 1, "b": 10}, 25, {"a": 9, "b": 9})
    assert ranks == {"a": 5, "b": 2}


def test_no_score_above_zero_is_refused() -> None:
    with pytest.raises(AllocationError, match="no module has a score above zero"):
        proportional_ranks({"a": 0.0, "b": -1.0}, {"a": 1, "b": 1}, 5, {"a": 9, "b": 9})


def module_scores(**options: np.ndarray) -> ImportanceScores:
    values = {"a": np.array([1.0]), "b": np.array([3.0])}
    return ImportanceScores(values, {"a": 10, "b": 10}, None, {"base_parameters": 10_000}, {"a": 8, "b": 8})


class TestThroughTheDoor:
    def test_scores_of_modules_are_allocated_in_proportion(self) -> None:
        plan = lorank.allocate(module_scores(), 80)
        assert plan.ranks == {"a": 2, "b": 6}
        assert plan.spent == 80

    def test_score_per_parameter_counts_the_cost(self) -> None:
        scores = ImportanceScores(
            {"a": np.array([1.0]), "b": np.array([1.0])}, {"a": 10, "b": 30}, None, {}, {"a": 99, "b": 99}
        )
        # Shares 20 and 6 2/3; the last 20 parameters do not pay for a unit of b.
        with pytest.warns(LorankWarning, match="every score is equal"):
            assert lorank.allocate(scores, 400, rank_by="score-per-parameter").ranks == {"a": 22, "b": 6}

    def test_a_matrix_has_no_more_rank_than_its_smaller_side(self) -> None:
        with pytest.warns(LorankWarning, match="pays for more units than there are within the limits"):
            assert lorank.allocate(module_scores(), 300).ranks == {"a": 8, "b": 8}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"scope": "layer"}, "scope 'layer' cuts scores of units"),
            ({"min_rank": 9}, "'a' is a matrix of rank 8"),
            ({"rank_by": "size"}, "rank_by is 'size'; allowed: 'score', 'score-per-parameter'"),
            ({"min_rank": 5, "max_rank": 4}, "max_rank is 4, below min_rank"),
            ({"max_rank": float("nan")}, "max_rank is nan; allowed: whole numbers or None"),
            ({"multiple_of": "4"}, "multiple_of is '4'; allowed: whole numbers"),
            ({"min_rank": True}, "min_rank is True; allowed: whole numbers"),
            ({"scale": "x"}, "scale is 'x'; allowed: numbers above 0"),
        ],
    )
    def test_limits_that_cannot_be_honoured(self, options: dict, message: str) -> None:
        with pytest.raises(AllocationError, match=message):
            lorank.allocate(module_scores(), 80, **options)

    def test_a_budget_below_one_block_is_refused(self) -> None:
        with pytest.raises(BudgetError, match="below 4 units of rank of the cheapest module, which cost 40"):
            lorank.allocate(module_scores(), 39, multiple_of=4)

    def test_something_else_than_scores(self) -> None:
        with pytest.raises(ScoresError, match=r"scores are str; give what lorank\.score or ImportanceScores\.load"):
            lorank.allocate("scores.safetensors", 39)  # type: ignore[arg-type]

    def test_a_pruning_ratio_needs_an_initial_rank(self) -> None:
        with pytest.raises(BudgetError, match="a share of the initial ranks, and none are known"):
            lorank.allocate(module_scores(), "beta=0.5")
