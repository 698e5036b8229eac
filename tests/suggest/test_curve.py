import numpy as np
import pytest

from lorank.errors import RecipeError
from lorank.suggest.cost import Cost
from lorank.suggest.curve import Curve, fit_curve, fit_with_uncertainty
from lorank.suggest.enough import Difference, difference, smallest_enough
from lorank.suggest.question import Question
from lorank.suggest.rates import TriedRates, rate_between, search_rates

BUDGETS = (1000, 2000, 4000, 8000, 16000)


def losses(truth: np.ndarray, *, seeds: int = 4, examples: int = 400, noise: float = 0.3, seed: int = 0) -> np.ndarray:
    """`(budgets, seeds, examples)`: examples are harder or easier for all budgets alike, and each cell has noise of its own."""
    generator = np.random.default_rng(seed)
    hard = generator.normal(0, 0.2, (1, 1, examples))
    return truth[:, None, None] + hard + generator.normal(0, noise, (len(truth), seeds, examples))


@pytest.mark.parametrize("truth", [Curve(1000, 0.4, 0.3, 0.7), Curve(1000, 1.9, 0.05, 1.6), Curve(1000, 0.0, 2.0, 0.2)])
def test_a_curve_is_recovered_exactly_from_its_points(truth: Curve) -> None:
    found = fit_curve(BUDGETS, truth.at(np.array(BUDGETS)))
    assert (found.floor, found.gain, found.power) == pytest.approx((truth.floor, truth.gain, truth.power), abs=2e-3)


def test_intervals_cover_the_truth_and_a_good_fit_is_trusted() -> None:
    truth, covered = Curve(1000, 0.4, 0.3, 0.7), []
    for seed in range(20):
        found = fit_with_uncertainty(BUDGETS, losses(truth.at(np.array(BUDGETS)), seed=seed))
        assert not found.problem
        low, high = found.gain_beyond(BUDGETS[-1])[1:]
        covered.append(low <= truth.at(BUDGETS[-1]) - truth.at(2 * BUDGETS[-1]) <= high)
    assert sum(covered) >= 15  # 18 expected; 14 or fewer have a chance of 1 %


@pytest.mark.parametrize(
    ("truth", "problem"),
    [
        (np.full(5, 0.5), "no more than their noise"),
        (np.array([0.3, 0.35, 0.4, 0.45, 0.5]), "larger budgets did not do better"),
        (np.array([0.9, 0.5, 0.85, 0.4, 0.5]), "the fit is poor"),
    ],
)
def test_what_is_no_such_curve_is_said(truth: np.ndarray, problem: str) -> None:
    assert problem in fit_with_uncertainty(BUDGETS, losses(truth)).problem


def test_a_bound_is_too_low_as_seldom_as_it_says() -> None:
    """Budgets whose true difference is 0.02, with seeds that differ: the bound is below it in no more than 5 % of the cases."""
    generator, low = np.random.default_rng(0), 0
    for _ in range(600):
        apart = 0.02 + generator.normal(0, 0.02, (3, 1)) + generator.normal(0, 0.2, (1, 200))
        low += difference(apart + generator.normal(0, 0.1, (3, 200)), np.zeros((3, 200))).upper < 0.02
    assert low / 600 < 0.075  # 0.05 and three standard errors


def test_the_smallest_that_is_enough_has_only_larger_ones_that_are() -> None:
    def bounds(*values: float) -> list[Difference]:
        return [Difference(value, 0.0, value) for value in (*values, 0.0)]

    assert smallest_enough(bounds(0.5, 0.01, 0.005), 0.02) == 1
    assert (
        smallest_enough(bounds(0.01, 0.5, 0.005), 0.02) == 2
    )  # what is below a budget that is not enough is not asked
    assert smallest_enough(bounds(0.5, 0.5, np.inf), 0.02) == 3
    one, other = np.array([[1.0, np.nan], [1.0, 1.0]]), np.ones((2, 2))
    assert difference(one, other).upper == np.inf


def test_rates_are_followed_beyond_the_ends_and_divergence_is_no_best() -> None:
    asked: list[float] = []

    def loss_at(rate: float) -> float:
        asked.append(rate)
        return np.nan if rate > 0.5 else (np.log(rate) - np.log(0.27)) ** 2

    found = search_rates([0.01, 0.03, 0.09], loss_at)
    assert asked == pytest.approx([0.01, 0.03, 0.09, 0.27, 0.81])
    assert found.best == pytest.approx(0.27)
    assert not found.at_an_end
    assert search_rates([0.01, 0.03, 0.09], lambda rate: rate).rates[0] == pytest.approx(0.01 / 9)
    assert TriedRates((0.1, 0.2), (0.5, float("nan"))).best == 0.1
    assert rate_between(4, (1, 0.01), (16, 0.0001)) == pytest.approx(0.001)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranks": (1, 2, 4)}, "four different ranks"),
        ({"ranks": (4, 2, 1, 8)}, "ascending"),
        ({"steps": 3}, "steps is 3"),
        ({"seeds": 1}, "seeds is 1"),
        ({"within": "much"}, "within is 'much'"),
        ({"within": "0%"}, "within is '0%'"),
        ({"minutes": 0.0}, "minutes is 0"),
    ],
)
def test_questions_that_cannot_be_answered(options: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Question(**options)


def test_what_fits_into_a_time_takes_no_longer() -> None:
    cost = Cost(step=0.5, first_runs=13, first_judging=30, seed_runs=5, seed_judging=20)
    assert cost.seconds(100, 3) == 0.5 * 100 * (13 + 15) + 30 + 60
    for seconds in (700, 1000, 2000):
        seeds = cost.seeds_within(seconds, 100)
        assert cost.seconds(100, seeds) <= seconds < cost.seconds(100, seeds + 1)
        steps = cost.steps_within(seconds, 2)
        assert cost.seconds(steps, 2) <= seconds < cost.seconds(steps + 1, 2)
    assert cost.seeds_within(100, 100) == 0


def test_what_may_be_lost_is_a_share_or_a_loss() -> None:
    assert Question(within="2%").allowed_loss(0.5) == pytest.approx(0.01)
    assert Question(within="0.03").allowed_loss(0.5) == 0.03
