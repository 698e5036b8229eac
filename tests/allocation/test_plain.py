"""The rules of allocation in use against the loops that specify them: the same ranks, to the unit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lorank
from lorank import ImportanceScores
from lorank.allocation import budgeted
from lorank.allocation.plain import proportional_ranks_plain, top_b_ranks_plain, top_ranks_plain
from lorank.allocation.proportional import proportional_ranks
from lorank.allocation.top_b import top_b_ranks, top_ranks
from lorank.errors import AllocationError

pytestmark = pytest.mark.filterwarnings("ignore::lorank.errors.LorankWarning")
NAMES = [f"model.layers.{k}.{part}" for k in (10, 2, 0, 1) for part in ("self_attn.q_proj", "mlp.up_proj")]
NAMES += [
    "model.layers.02.mlp.up_proj",
    "embed",
    "lm_head",
    "vision.blocks.2.attn.qkv",
]  # 02 and 2: equal but for the text
# Few different values give many ties; floats with long fractions give sums that round.
tied = st.integers(-3, 8).map(lambda k: k / 4)
scores_of_units = st.one_of(tied, tied, st.floats(-1e6, 1e6))
whole_costs = st.one_of(st.integers(1, 9), st.sampled_from([256, 768, 1024, 3840]), st.integers(2**52, 2**55))
weights = st.one_of(st.sampled_from([0.1, 0.3, 0.7, 1.0]), st.floats(1e-3, 1e3))


@st.composite
def scores_of_ragged_modules(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9, unique=True))
    units = st.lists(scores_of_units, max_size=draw(st.sampled_from([1, 4, 12])))
    return {name: np.array(draw(units), dtype=np.float64) for name in names}


def costs_of(data: st.DataObject, names: dict[str, np.ndarray], numbers: st.SearchStrategy) -> dict[str, float]:
    few = data.draw(st.lists(numbers, min_size=1, max_size=4))
    return {name: data.draw(st.sampled_from(few)) for name in names}


def budget_of(data: st.DataObject, scores: dict[str, np.ndarray], costs: dict[str, float]) -> float:
    """Any share of what all units cost, exact multiples of it, and a little beside them."""
    total = sum(len(values) * costs[name] for name, values in scores.items())
    share = data.draw(st.one_of(st.floats(0, 1.2), st.sampled_from([0.0, 0.5, 1.0])))
    budget = share * total + data.draw(st.sampled_from([0, 0, -1, 1, 0.5]))
    return math.floor(budget) if isinstance(total, int) and budget >= 2**52 else budget


@settings(max_examples=250, deadline=None)
@given(
    st.data(),
    st.sampled_from(["score", "score-per-parameter"]),
    st.sampled_from(["global", "layer"]),
    st.integers(1, 4),
)
def test_the_cut_is_the_plain_one(data: st.DataObject, rank_by, scope, multiple_of: int) -> None:
    values = data.draw(scores_of_ragged_modules().filter(lambda found: any(len(each) for each in found.values())))
    costs = costs_of(data, values, whole_costs)
    scores = ImportanceScores(values, costs)
    limits = {"rank_by": rank_by, "scope": scope, "multiple_of": multiple_of}
    limits["min_rank"] = multiple_of * data.draw(st.sampled_from([0, 0, 1, 2]))
    limits["max_rank"] = data.draw(st.none() | st.integers(max(multiple_of, limits["min_rank"]), 13))
    limits["price"] = dict.fromkeys(values, 1) if data.draw(st.booleans()) else None
    budget = math.floor(budget_of(data, values, limits["price"] or costs))
    ranks = top_b_ranks(scores, budget, **limits)
    assert ranks == top_b_ranks_plain(scores, budget, **limits)
    assert list(ranks) == list(values)
    assert {type(rank) for rank in ranks.values()} == {int}


@settings(max_examples=250, deadline=None)
@given(st.data(), st.sampled_from(["score", "score-per-parameter"]), st.booleans(), st.booleans(), st.integers(0, 3))
def test_a_cut_in_training_is_the_plain_one(
    data: st.DataObject, rank_by, fill: bool, own_price: bool, min_rank: int
) -> None:
    scores = data.draw(scores_of_ragged_modules())
    costs = costs_of(data, scores, whole_costs)
    price = costs_of(data, scores, data.draw(st.sampled_from([whole_costs, weights]))) if own_price else None
    options = {"min_rank": min_rank, "rank_by": rank_by, "fill": fill, "price": price}
    budget = budget_of(data, scores, price or costs)
    assert top_ranks(scores, costs, budget, **options) == top_ranks_plain(scores, costs, budget, **options)


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("rank_by", ["score", "score-per-parameter"])
def test_a_whole_model_gets_the_plain_plan(rank_by, scope, monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(0)
    costs = {f"model.layers.{k}.{p}": c for k in range(12) for p, c in (("q", 4096), ("k", 2560), ("up", 10240))}
    scores = ImportanceScores({name: source.gamma(0.5, size=16).round(2) for name in costs}, costs)
    limits = {"rank_by": rank_by, "scope": scope}
    budgets = [1_000_000, "r=3", "r=7.3", "beta=0.25", sum(costs.values()) * 16]
    plans = [lorank.allocate(scores, budget, **limits) for budget in budgets]
    monkeypatch.setattr(budgeted, "top_b_ranks", top_b_ranks_plain)
    assert plans == [lorank.allocate(scores, budget, **limits) for budget in budgets]


def test_whole_numbers_above_those_of_float64_stay_exact() -> None:
    """2^53 + 1 is no float64: the second unit costs one parameter more than is left."""
    scores, costs = {"a": np.array([2.0]), "b": np.array([1.0])}, {"a": 2**53, "b": 2**53 + 1}
    assert top_ranks(scores, costs, 2**54) == {"a": 1, "b": 0} == top_ranks_plain(scores, costs, 2**54)
    assert top_ranks(scores, costs, 2**54 + 1) == {"a": 1, "b": 1}


def test_sums_of_weights_round_as_those_of_the_loop_do() -> None:
    """0.3 - 0.1 - 0.1 is less than 0.1, so the third unit does not fit; 0.1 + 0.1 + 0.1 would be more than 0.3."""
    scores, options = {"a": np.array([3.0, 2.0, 1.0])}, {"price": {"a": 0.1}}
    assert top_ranks(scores, {"a": 1}, 0.3, **options) == {"a": 2} == top_ranks_plain(scores, {"a": 1}, 0.3, **options)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_means_of_blocks_are_those_of_the_plain_form_to_the_last_bit(multiple_of: int, count: int, seed: int) -> None:
    """Of two modules with the same units in another order, the means tie, and the first by name is served."""
    values = np.random.default_rng(seed).lognormal(sigma=4, size=multiple_of * count)
    scores = ImportanceScores({"b": values, "a": values[::-1], "c": np.roll(values, 1)}, {"a": 1, "b": 1, "c": 1})
    for budget in range(multiple_of, 3 * len(values) + 1, multiple_of):
        found = top_b_ranks(scores, budget, multiple_of=multiple_of)
        assert found == top_b_ranks_plain(scores, budget, multiple_of=multiple_of)


@settings(max_examples=250, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(0, 2))
def test_proportional_ranks_are_the_plain_ones(data: st.DataObject, multiple_of: int, blocks: int) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=9, unique=True))
    values = st.one_of(st.sampled_from([-1.0, 0.0, 1e-300, 0.5, 1.0, 1.0]), st.floats(1e-6, 1e6))
    scores = {name: data.draw(values) for name in names}
    costs = {name: data.draw(st.one_of(st.just(8), st.integers(1, 40))) for name in names}
    caps = {name: data.draw(st.one_of(st.just(16), st.integers(1, 40))) for name in names}
    limits = {"min_rank": multiple_of * blocks, "multiple_of": multiple_of}
    least = limits["min_rank"] * sum(costs.values())
    problem = (scores, costs, least + data.draw(st.integers(1, 3000)), caps)
    if max(scores.values()) <= 0:
        with pytest.raises(AllocationError, match="no module has a score above zero"):
            proportional_ranks(*problem, **limits)
        return
    ranks = proportional_ranks(*problem, **limits)
    assert ranks == proportional_ranks_plain(*problem, **limits)
    assert list(ranks) == names
