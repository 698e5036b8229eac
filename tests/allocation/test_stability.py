import numpy as np
import pytest
from scipy.stats import spearmanr

import lorank
from lorank.scores import ImportanceScores

NAMES = [f"layer.{k}" for k in range(6)]


def scores(halves: np.ndarray, draws: np.ndarray) -> ImportanceScores:
    values = {name: np.array([k + 1.0]) for k, name in enumerate(NAMES)}
    resamples = {
        "halves": {name: halves[:, k] for k, name in enumerate(NAMES)},
        "bootstrap": {name: draws[:, k] for k, name in enumerate(NAMES)},
    }
    return ImportanceScores(values, dict.fromkeys(NAMES, 10), None, {}, dict.fromkeys(NAMES, 99), resamples)


def test_resamples_that_agree_move_nothing() -> None:
    same = np.arange(1.0, 7.0)
    found = lorank.allocate(scores(np.stack([same] * 2), np.stack([same] * 5)), 210).provenance["stability"]
    assert found["halves"] == {"spearman": pytest.approx(1.0), "changed_modules": 0, "moved_share": 0.0}
    nothing = {"changed_modules": 0, "moved_share": 0.0, "worst_moved_share": 0.0}
    assert found["bootstrap"] == {"draws": 5, "spearman": pytest.approx(1.0), **nothing}


def test_halves_that_contradict_each_other_are_seen() -> None:
    up = np.arange(1.0, 7.0)
    found = lorank.allocate(scores(np.stack([up, up[::-1]]), np.stack([up, up, up[::-1]])), 210).provenance["stability"]
    assert found["halves"]["spearman"] == pytest.approx(-1.0)
    assert found["halves"]["changed_modules"] == 6
    assert found["halves"]["moved_share"] == pytest.approx(9 / 21)  # 5 + 3 + 1 of 21 units
    assert found["bootstrap"]["moved_share"] == 0.0
    assert found["bootstrap"]["worst_moved_share"] > 0.3


def test_resamples_worth_nothing_are_left_out() -> None:
    halves, draws = np.ones((2, 6)), np.ones((3, 6))
    halves[0] = draws[1] = -1.0
    found = lorank.allocate(scores(halves, draws), 210).provenance["stability"]
    assert "halves" not in found
    assert found["bootstrap"]["draws"] == 2


def test_equal_scores_have_no_rank_correlation() -> None:
    found = lorank.allocate(scores(np.ones((2, 6)), np.ones((3, 6))), 210).provenance["stability"]
    assert found["halves"]["spearman"] is None
    assert found["bootstrap"]["spearman"] is None


def test_the_rank_correlation_is_scipys() -> None:
    source = np.random.default_rng(0)
    for _ in range(20):
        one, other = source.integers(1, 5, size=(2, 6)).astype(float)  # with ties
        found = lorank.allocate(scores(np.stack([one, other]), np.ones((1, 6))), 210).provenance["stability"]
        assert found["halves"]["spearman"] == pytest.approx(spearmanr(one, other).statistic)


def test_scores_without_resamples_say_nothing_about_it() -> None:
    plain = ImportanceScores({"a": np.ones(1)}, {"a": 10}, None, {}, {"a": 9})
    assert "stability" not in lorank.allocate(plain, 20).provenance
