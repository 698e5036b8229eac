"""I-LoRA's cut: a pruning ratio counts units, whatever each of them costs. The paper's rule is written down again here."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lorank
from lorank import ImportanceScores
from lorank.allocation.top_b import uniform_scores
from lorank.errors import AllocationError, BudgetError, LorankWarning


def kept_by_the_paper(scores: dict[str, list[float]], beta: str) -> dict[str, int]:
    """Section 1.3: sort all scores ascending into G, `τ = G[t·β]`; what is below τ goes."""
    ascending = sorted(value for values in scores.values() for value in values)
    numerator, denominator = int(beta.removeprefix("0.")), 10 ** len(beta.removeprefix("0."))
    threshold = ascending[len(ascending) * numerator // denominator]
    return {name: sum(value >= threshold for value in values) for name, values in scores.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["0.5", "0.3", "0.25", "0.9", "0.07"]))
def test_the_cut_is_the_papers_where_no_scores_tie(seed: int, beta: str) -> None:
    source = np.random.default_rng(seed)
    scores = {f"l.{k}": source.permutation(1000)[: source.integers(1, 6)] + k / 100 for k in range(7)}
    costs = {name: int(source.integers(1, 500)) for name in scores}
    plan = lorank.allocate(ImportanceScores(scores, costs), f"beta={beta}")
    assert plan.ranks == kept_by_the_paper({name: list(values) for name, values in scores.items()}, beta)
    assert plan.budget_parameters == plan.spent == sum(costs[name] * rank for name, rank in plan.ranks.items())


def deberta(wide_first: bool) -> ImportanceScores:
    """72 matrices of DeBERTaV3-base at rank 2: four of 768 x 768 in each layer, and two of 768 x 3,072."""
    costs = {f"layer.{k}.{p}": 1536 for k in range(12) for p in ("query", "key", "value", "output")}
    costs |= {f"layer.{k}.{p}": 3840 for k in range(12) for p in ("intermediate", "dense")}
    worth = {name: (cost == 3840) == wide_first for name, cost in costs.items()}
    return ImportanceScores(
        {name: np.array([2.0, 2.5]) if worth[name] else np.array([1.0, 1.5]) for name in costs}, costs
    )


@pytest.mark.parametrize(
    ("wide_first", "spent"),
    [
        (True, 48 * 3840 + 24 * 1536),  # all 48 units of the wide matrices, and the best 24 of the 96 others
        (False, 72 * 1536),
    ],
)
def test_half_of_144_units_is_72_whatever_they_cost(wide_first: bool, spent: int) -> None:
    plan = lorank.allocate(deberta(wide_first), "beta=0.5")
    assert (plan.total_rank, plan.budget_units, plan.spent, plan.budget_parameters) == (72, 72, spent, spent)
    assert plan.spending == f"72 units of rank (72 asked for), {spent:,} parameters"
    assert lorank.allocate(deberta(wide_first), "keep=50%").ranks == plan.ranks
    # Other forms of a budget are parameters: 331,776 / 2 of them, to less than one unit.
    walked = lorank.allocate(deberta(wide_first), "r=1")
    assert 165_888 - 3840 < walked.spent <= 165_888 == walked.budget_parameters
    assert (walked.budget_units, walked.total_rank == 72) == (None, False)


def test_limits_count_units_too() -> None:
    scores = ImportanceScores({"a": [9.0, 8.0, 7.0, 6.0], "b": [5.0, 4.0, 3.0, 2.0]}, {"a": 100, "b": 1})
    assert lorank.allocate(scores, "beta=0.5").ranks == {"a": 4, "b": 0}
    assert lorank.allocate(scores, "beta=0.5", max_rank=3).ranks == {"a": 3, "b": 1}
    assert lorank.allocate(scores, "beta=0.5", min_rank=1).ranks == {"a": 3, "b": 1}
    assert lorank.allocate(scores, "beta=0.3", multiple_of=2).ranks == {"a": 4, "b": 2}  # 6 of 8
    # Worth per parameter decides which units stay, not how many.
    assert lorank.allocate(scores, "beta=0.5", rank_by="score-per-parameter").ranks == {"a": 0, "b": 4}
    layers = ImportanceScores({"l.0.a": [9.0, 8.0], "l.1.a": [2.0, 1.0]}, {"l.0.a": 7, "l.1.a": 3})
    assert lorank.allocate(layers, "beta=0.5", scope="layer").ranks == {"l.0.a": 1, "l.1.a": 1}
    with pytest.raises(
        AllocationError, match=r"min_rank 3 alone costs 6 units of rank, above the budget beta=0\.5 = 4"
    ):
        lorank.allocate(scores, "beta=0.5", min_rank=3)
    with pytest.raises(BudgetError, match="is 1 units of rank, below 2 units"):
        lorank.allocate(scores, "beta=0.9", multiple_of=2)
    with pytest.warns(LorankWarning, match="8 units of rank pays for more units than there are within the limits"):
        assert lorank.allocate(scores, "keep=100%", max_rank=3).total_rank == 6


def test_equal_scores_lose_units_from_the_last_layer_on() -> None:
    scores = uniform_scores({f"l.{k}.q": 1 + k for k in range(4)}, 2)
    plan = lorank.allocate(scores, "beta=0.3")
    assert plan.ranks == {"l.0.q": 2, "l.1.q": 2, "l.2.q": 1, "l.3.q": 1}  # 8 - floor(2.4)


def test_a_saved_plan_says_units_asked_and_kept_and_parameters_apart(tmp_path) -> None:
    plan = lorank.allocate(deberta(True), "beta=0.5")
    plan.save(tmp_path / "plan.json")
    assert lorank.RankPlan.load(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    assert all(said in text for said in ('"units": 72', f'"spent": {plan.spent}', '"total_rank": 72'))


def test_scores_of_modules_have_no_units_to_count() -> None:
    scores = ImportanceScores({"a": [1.0], "b": [2.0]}, {"a": 3, "b": 3}, max_ranks={"a": 8, "b": 8})
    with pytest.raises(BudgetError, match="share of the initial ranks, and none are known"):
        lorank.allocate(scores, "beta=0.5")


def test_a_share_of_units_is_exact_in_decimal() -> None:
    """0.29 · 100 is 28.999... in binary: 29 units go, not 28."""
    scores = ImportanceScores({"a": np.arange(100.0)}, {"a": 1})
    assert lorank.allocate(scores, "beta=0.29").total_rank == 71
