"""Statistics on made-up results: level under the null, power where there is an effect, ties, missing cells."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lorank.compare.statistics import (
    bootstrap_interval,
    compare,
    corrected,
    holm,
    least_shown,
    p_equal,
    p_value,
    paired_differences,
    seeds_needed,
)


def claims(
    effect: float, *, grids: int, methods: int, seeds: int, level: float = 0.05, rounded: bool = False
) -> np.ndarray:
    """Number of claims in each simulated grid; seeds share their luck, as data order and initialisation do."""
    source = np.random.default_rng(0)
    counted = []
    for _ in range(grids):
        luck = source.normal(0.9, 0.01, seeds)
        baseline = luck + source.normal(0, 0.004, seeds)
        found = luck + effect + source.normal(0, 0.004, (methods, seeds))
        if rounded:  # an accuracy of 408 test examples
            baseline, found = np.round(baseline * 408) / 408, np.round(found * 408) / 408
        corrected_p = holm([p_value(one - baseline) for one in found])
        counted.append(sum(p < level for p in corrected_p))
    return np.array(counted)


@pytest.mark.parametrize(
    ("seeds", "rounded"),
    [pytest.param(seeds, False, marks=pytest.mark.long) for seeds in (3, 5)]
    + [pytest.param(5, True, marks=pytest.mark.long)],
)
def test_no_more_false_claims_than_the_level_over_a_thousand_grids(seeds: int, rounded: bool) -> None:
    wrong = (claims(0.0, grids=1000, methods=8, seeds=seeds, rounded=rounded) > 0).mean()
    # Four standard errors of 1,000 draws above 5 %.
    assert wrong <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 1000)


def test_effects_are_found_more_often_with_more_seeds() -> None:
    power = [(claims(0.012, grids=200, methods=4, seeds=seeds) > 0).mean() for seeds in (3, 5, 10)]
    assert power[0] < power[1] < power[2]
    assert power[2] > 0.95


def test_as_many_seeds_as_are_said_to_be_needed_are_enough() -> None:
    """80 % power at the level of one comparison, by simulation."""
    wanted = seeds_needed(0.01, 0.012)
    assert wanted is not None
    source = np.random.default_rng(1)
    shown = [p_value(source.normal(0.01, 0.012, wanted)) < 0.05 for _ in range(1000)]
    assert 0.76 < np.mean(shown) < 0.87
    fewer = [p_value(source.normal(0.01, 0.012, wanted - 2)) < 0.05 for _ in range(1000)]
    assert np.mean(fewer) < 0.8


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_bootstrap_intervals_hold_what_they_promise(seeds: int) -> None:
    """Plain percentile intervals would cover 80 % at five seeds."""
    source = np.random.default_rng(2)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(source.normal(0.3, 1.0, seeds))
        covered += low <= 0.3 <= high
    # No resample leaves the range of the sample, which holds the middle of a symmetric distribution in 1 - 2^(1 - n).
    limit = 1 - 2.0 ** (1 - seeds)
    assert min(0.95, limit) - 0.06 < covered / 200 <= 1


def test_an_interval_is_about_the_mean_and_the_same_each_time() -> None:
    differences = np.array([0.01, 0.03, -0.005, 0.02, 0.012])
    one, again = compare(differences), compare(differences)
    assert repr(one) == repr(again)  # one value is NaN, which equals nothing
    assert one.low < one.mean < one.high
    assert one.p == pytest.approx(stats.ttest_rel(differences + 1, np.ones(5)).pvalue)
    assert compare(differences, test="wilcoxon").p == pytest.approx(stats.wilcoxon(differences).pvalue)


def test_ties() -> None:
    assert compare(np.zeros(5)).p == 1.0
    assert compare(np.zeros(5)).seeds_needed is None
    same = compare(np.full(5, 0.0025))
    assert same.p == 2 / 2**5  # all of one sign is all that is known
    assert (same.low, same.high) == pytest.approx((0.0025, 0.0025))
    assert p_value(np.array([0.01, 0.01])) == 0.5


def test_missing_cells_are_left_out_in_pairs() -> None:
    method = {0: 0.9, 1: None, 2: 0.8, 3: math.nan, 5: 0.7}
    baseline = {0: 0.8, 1: 0.5, 2: 0.9, 3: 0.5, 4: 0.5}
    assert paired_differences(method, baseline) == pytest.approx([0.1, -0.1])
    for differences, pairs in ((np.array([]), 0), (np.array([0.1]), 1)):
        found = compare(differences)
        assert found.pairs == pairs
        assert math.isnan(found.p)
        assert math.isnan(found.low)
        assert found.seeds_needed is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm(p_values: list[float]) -> None:
    found = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, found, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert all(found[one] <= found[two] for one, two in pairwise(order))
    assert min(found) == min(1.0, len(p_values) * min(p_values))
    with_gap = holm([*p_values, math.nan])
    assert with_gap[:-1] == found  # nothing to test is no comparison
    assert math.isnan(with_gap[-1])


def test_correction_is_over_all_comparisons_together() -> None:
    strong, weak = compare(np.array([0.1, 0.11, 0.12, 0.1])), compare(np.array([0.1, -0.1, 0.05, 0.0]))
    first, second = corrected([strong, weak])
    # Seeds are counted as for the first claim of two, and what is not shown needs more than there are.
    assert (first.seeds_needed, second.seeds_needed) == tuple(
        seeds_needed(d.mean, d.std, 0.025) for d in (strong, weak)
    )
    assert (second.seeds_needed or 1000) > 4
    assert first.holm == pytest.approx(2 * strong.p)
    assert second.holm == pytest.approx(max(weak.p, first.holm))


@pytest.mark.parametrize("seeds", [2, 3, 5, 8])
def test_what_is_not_shown_would_take_more_seeds(seeds: int) -> None:
    source = np.random.default_rng(seeds)
    for test in ("t", "wilcoxon"):
        drawn = [compare(source.normal(0.3, 0.2, seeds), test=test) for _ in range(4)]  # type: ignore[arg-type]
        for found in corrected(drawn, test=test):  # type: ignore[arg-type]
            assert found.holm < 0.05 or found.seeds_needed is None or found.seeds_needed > seeds
            assert test == "t" or found.seeds_needed is None or found.seeds_needed >= 8  # 2^-7 < 0.05 / 4


def test_a_claim_needs_mean_and_ranks_on_one_side() -> None:
    differences = np.array([*np.linspace(0.01, 0.028, 19), -0.9])
    found = corrected([compare(differences, test="wilcoxon")], test="wilcoxon")[0]
    assert found.holm < 0.05
    assert (found.mean < 0, found.direction, found.claim(0.05)) == (True, 1, 0)
    assert corrected([compare(differences[:19], test="wilcoxon")], test="wilcoxon")[0].claim(0.05) == 1
    assert corrected([compare(-differences[:19])])[0].claim(0.05) == -1


def test_equality_is_the_interval_inside_of_the_bounds() -> None:
    differences = np.array([0.003, -0.002, 0.001, 0.004, 0.0])
    low, high = stats.t.interval(0.9, 4, differences.mean(), stats.sem(differences))
    widest = max(-low, high)
    assert p_equal(differences, 1.001 * widest) < 0.05 < p_equal(differences, 0.999 * widest)
    assert p_equal(differences + 0.02, 0.01) > 0.95
    assert p_equal(differences, 0.02, "wilcoxon") == 1 / 2**5
    assert (p_equal(np.zeros(4), 0.01), p_equal(np.full(4, 0.02), 0.01)) == (1 / 2**4, 1.0)
    assert math.isnan(p_equal(differences[:1], 0.01))
    # Equality and a difference may both be shown; the family of each is corrected for itself.
    near, far = (compare(0.004 + shift + differences / 50, within=0.01) for shift in (0.0, 0.1))
    near, far = corrected([near, far])
    assert (near.claim(0.05), near.equal(0.05), far.equal(0.05)) == (1, True, False)
    assert near.holm_equal == pytest.approx(2 * near.p_equal)
    assert not compare(differences).equal(1.0)


def test_no_more_false_equalities_than_the_level() -> None:
    """Differences at the bound, where equality is false and hardest to refuse."""
    source = np.random.default_rng(3)
    wrong = [p_equal(source.normal(0.01, 0.004, 6), 0.01) < 0.05 for _ in range(400)]
    assert np.mean(wrong) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)


def test_the_least_difference_that_is_shown_and_the_seeds_that_are_needed_agree() -> None:
    for seeds in (3, 5, 10):
        least = least_shown(seeds, 0.01)
        assert seeds_needed(1.001 * least, 1.0, 0.01) == seeds
        assert (seeds_needed(0.999 * least, 1.0, 0.01) or 0) == seeds + 1
    assert least_shown(5, 0.05, test="wilcoxon") == math.inf
    assert least_shown(1, 0.05) == math.inf
