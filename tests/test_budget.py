import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorank import Budget, LorankError

COSTS = {"query": 768, "up": 1920}


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("0.33M", 330_000),
        ("330000", 330_000),
        (330_000, 330_000),
        ("330_000", 330_000),
        ("12k", 12_000),
        ("0.06%", 13_627),  # floor(0.0006 * 22,713,216)
        ("r=2", 2 * 2688),
        ("r=0.5", 1344),
        ("rank=144", 144 * 1344),
        ("rank=3", 4032),
        ("beta=0.5", 8 * 2688 // 2),
        ("beta=0.3", 12 * 1344),  # floor(0.3 * 16) = 4 of 16 units are dropped
        ("keep=50%", 8 * 2688 // 2),
        ("keep=70%", 12 * 1344),  # what beta=0.3 leaves
        ("keep=100%", 16 * 1344),
        (" R = 2 ", 2 * 2688),
    ],
)
def test_every_form_means_the_number_of_parameters_it_says(text: str | int, parameters: int) -> None:
    assert Budget.parse(text).parameters(COSTS, base_parameters=22_713_216, initial_rank=8) == parameters


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "-1",
        "0M",
        "r=0",
        "r=-2",
        "r=",
        "two",
        "1e",
        "5%%",
        "beta=0",
        "beta=1",
        "beta=1.5",
        "r=2M",
        "keep=0%",
        "keep=0.5",
        "keep=101%",
        "keep=50",
        "keep=50M",
        "nan",
        "inf",
        "1e99999",
    ],
)
def test_a_budget_that_cannot_be_read_says_what_is_allowed(text: str) -> None:
    with pytest.raises(LorankError, match=r"keep=50%"):
        Budget.parse(text)


@given(st.integers(1, 99), st.integers(1, 64))
def test_keep_is_what_beta_leaves(percent: int, rank: int) -> None:
    kept, dropped = Budget.parse(f"keep={percent}%"), Budget.parse(f"beta=0.{100 - percent:02d}")
    assert kept.parameters(COSTS, initial_rank=rank) == dropped.parameters(COSTS, initial_rank=rank)


def test_a_truth_value_is_no_budget() -> None:
    with pytest.raises(LorankError):
        Budget.parse(True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("767", "below one unit of rank"),
        ("0.000001%", "below one unit"),
        ("r=0.1", "below one unit"),
        ("2M", "above the base model"),
    ],
)
def test_a_budget_outside_of_the_model_is_refused(text: str, message: str) -> None:
    with pytest.raises(LorankError, match=f"{message}.*keep=50%"):
        Budget.parse(text).parameters(COSTS, base_parameters=1_000_000)


@pytest.mark.parametrize("text", ["1%", "beta=0.5", "keep=50%"])
def test_a_share_needs_what_it_is_a_share_of(text: str) -> None:
    with pytest.raises(LorankError, match=r"(not|none are) known.*keep=50%"):
        Budget.parse(text).parameters(COSTS)


@given(st.integers(1, 10**12))
def test_a_number_of_parameters_is_exact(number: int) -> None:
    assert Budget.parse(str(number)).parameters({"only": 1}) == number
    assert Budget.parse(f"{number}M").parameters({"only": 1}) == number * 10**6
