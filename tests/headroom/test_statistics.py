import numpy as np
import pytest

from lorank.errors import ComparisonError
from lorank.headroom.statistics import bound_of_best, cross_fitted_gains, crossed_mean, spread_of
from lorank.headroom.verdict import Look, headroom_at_looks, headroom_from_losses, looks_until


def draws(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_crossed_mean_of_sums_has_both_variances() -> None:
    of_seeds, of_examples = draws().standard_normal(5), 3 * draws(1).standard_normal(40)
    found = crossed_mean(of_seeds[:, None] + of_examples[None, :])
    wanted = of_seeds.var(ddof=1) / 5 + of_examples.var(ddof=1) / 40
    assert found.mean == pytest.approx(of_seeds.mean() + of_examples.mean())
    assert found.standard_error**2 == pytest.approx(wanted)
    assert found.with_seeds(5).standard_error == pytest.approx(found.standard_error)
    assert found.with_seeds(500).standard_error ** 2 == pytest.approx(
        of_seeds.var(ddof=1) / 500 + of_examples.var(ddof=1) / 40
    )
    low, high = found.interval(0.05)
    assert (low + high) / 2 == pytest.approx(found.mean)


def test_spread_of_sums_has_no_rest() -> None:
    plans, seeds = draws().standard_normal(6), draws(1).standard_normal(4)
    found = spread_of(plans[:, None] + seeds[None, :])
    assert found.rest == pytest.approx(0, abs=1e-12)
    assert found.plans == pytest.approx(plans.std(ddof=1))
    assert found.seeds == pytest.approx(seeds.std(ddof=1))
    noise = draws(2).standard_normal((6, 4))
    assert 0.001 < spread_of(noise).p < 1


def test_a_plan_is_never_measured_where_it_was_chosen() -> None:
    losses = draws().standard_normal((4, 3, 10))
    halves = np.array([True] * 5 + [False] * 5)
    gains = cross_fitted_gains(losses, halves)
    for seed in range(3):
        for half in (halves, ~halves):
            chosen = [1 + int(losses[1:, other][:, ~half].mean(1).argmin()) for other in range(3) if other != seed]
            wanted = losses[0, seed, half] - sum(losses[plan, seed, half] for plan in chosen) / 2
            np.testing.assert_allclose(gains[seed, half], wanted)
    # Luck of one plan on one seed, or on one half: where it is chosen for it, it does not show.
    lucky = np.zeros((4, 3, 10))
    lucky[2, 1] = -5
    assert not cross_fitted_gains(lucky, halves)[[0, 2]].any()
    lucky = np.zeros((4, 3, 10))
    lucky[2, :, halves] = -5
    assert cross_fitted_gains(lucky, halves)[:, ~halves].max() == 0


def test_a_lucky_plan_gains_nothing_and_a_good_one_what_it_is_worth() -> None:
    noise = 0.01 * draws().standard_normal((9, 5, 200)) + 0.5
    noise[3] -= 0.07
    found = headroom_at_looks(noise)
    assert found.verdict == "ranks matter"
    assert found.look == Look(3, pytest.approx(0.01))
    assert found.interval[0] < 0.07 < found.interval[1] <= found.best + 0.01
    assert "about 13.9%" in found.sentence
    noise[3] += 0.07
    assert headroom_at_looks(noise).verdict == "not more than"
    assert "not more than" in headroom_at_looks(noise).sentence
    few = headroom_from_losses(noise + 0.05 * draws(1).standard_normal((9, 5, 1)))
    assert few.verdict == "cannot tell"
    assert few.seeds_needed is not None
    assert few.seeds_needed > 5
    assert f"about {few.seeds_needed} seeds" in few.sentence


def test_levels_of_all_looks_together_stay_below_the_level() -> None:
    looks = list(looks_until(8))
    assert [look.seeds for look in looks] == [3, 5, 8]
    assert sum(look.level for look in looks_until(200)) < 0.05
    # Continued with more seeds: what was spent is spent, and the shares of the level go on.
    more = list(looks_until(20, looks))
    assert [look.seeds for look in more] == [12, 18, 20]
    assert [look.level for look in [*looks, *more]] == [look.level for look in looks_until(20)]
    assert list(looks_until(8, looks)) == []
    assert [look.seeds for look in looks_until(4)] == [3, 4]


def test_false_alarms_and_power() -> None:
    """Where plans are exchangeable, and where most are worse and none is better; then sizes as in a planted world."""
    source, alarms, hits, count = draws(5), 0, 0, 120
    for number in range(count):
        plans = np.abs(source.standard_normal(9)) * (0.0355 if number % 2 else 0)
        plans[0] = 0.0
        noise = 0.5 + 0.0088 * source.standard_normal((9, 8, 1)) + 0.05 * source.standard_normal((9, 1, 60))
        alarms += headroom_at_looks(noise + plans[:, None, None]).verdict == "ranks matter"
        if number < 30:
            planted = np.concatenate([[0.02], 0.0315 * source.standard_normal(8)])
            losses = 0.14 + planted[:, None, None] + 0.0037 * source.standard_normal((9, 8, 60))
            hits += headroom_at_looks(losses).verdict == "ranks matter"
    assert alarms <= 0.05 * count
    assert hits >= 0.8 * 30


def test_a_gain_that_is_shown_and_too_small_to_count_is_no_reason_for_another_plan() -> None:
    losses = 1.0 + 1e-4 * np.random.default_rng(0).standard_normal((3, 5, 200))
    losses[1:] -= 0.001
    small = headroom_from_losses(losses)
    assert small.gain.mean == pytest.approx(0.001, abs=2e-4)
    assert small.interval[0] > 0
    assert small.verdict == "not more than"
    assert headroom_from_losses(losses, smallest=1e-5).verdict == "ranks matter"


def test_the_bound_of_the_best_plan_is_above_each_plan() -> None:
    losses = 0.5 + 0.01 * draws(3).standard_normal((6, 4, 80))
    gains = (losses[0] - losses).mean((1, 2))
    assert bound_of_best(losses, 0.05) > gains.max()


@pytest.mark.parametrize(
    ("shape", "halves", "message"),
    [((1, 3, 9), None, "at least 2 plans"), ((3, 3), None, "uniform ranks first"), ((3, 3, 9), [True] * 9, "halves")],
)
def test_what_cannot_be_judged_is_refused(shape: tuple[int, ...], halves: object, message: str) -> None:
    with pytest.raises(ComparisonError, match=message):
        headroom_from_losses(np.ones(shape), halves)  # type: ignore[arg-type]
    losses = np.ones((3, 3, 9))
    losses[1, 2, 0] = np.nan
    with pytest.raises(ComparisonError, match="plan 1, seed 2"):
        headroom_from_losses(losses)
