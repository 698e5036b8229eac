"""A deciding stage whose loss rises, or whose triplets have no score, is named."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import tiny_trainer
from tests.in_training.pruning_cases import ADALORA

from lorank import ImportanceScores, RankAllocation
from lorank.engine.unit_scores import warn_of_dead_triplets
from lorank.errors import LorankWarning
from lorank.in_training.stage_problems import rising_loss, warn_of_rising_loss

RISING = [0.5, 0.52, 0.48, 0.6, 0.9, 1.3, 1.32, 1.28]


def test_a_rise_beyond_the_standard_error_is_told_from_chance() -> None:
    assert rising_loss(RISING) == (pytest.approx(0.5), pytest.approx(1.3))
    assert rising_loss(RISING[::-1]) is None
    assert rising_loss([0.5, 0.9, 0.2, 0.6, 0.8, 0.4, 0.9, 0.6]) is None  # varies by more than it rises
    assert rising_loss([1.0] * 3 + [2.0] * 3) == (1.0, 2.0)
    assert rising_loss([1.0] * 30) is None
    assert rising_loss(RISING[3:]) is None  # too few
    assert rising_loss([*RISING, float("nan")]) is None


def test_losses_that_only_vary_are_hardly_ever_called_rising() -> None:
    source = np.random.default_rng(0)
    for count in (6, 20, 200):
        found = [rising_loss(0.7 + 0.05 * source.standard_normal(count)) for _ in range(200)]
        assert sum(one is not None for one in found) <= 4


def test_a_fifth_of_many_losses_is_compared() -> None:
    losses = [1.0, 2.0] * 5 + [9.0] * 30 + [3.0, 4.0] * 5
    assert rising_loss(losses) == (1.5, 3.5)


def test_what_comes_after_the_last_cut_is_not_looked_at() -> None:
    history: list[dict[str, Any]] = [{"loss": loss, "step": step} for step, loss in enumerate(RISING)]
    history.append({"eval_loss": 1.0, "step": 4})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rising_loss(history, 3, "train.learning_rate")
    with pytest.warns(
        LorankWarning, match=r"from 0\.5 .* to 1\.3 .*; lower search\.learning_rate, or raise its warm-up"
    ):
        warn_of_rising_loss(history, None, "search.learning_rate")


def test_the_allocation_of_a_trainer_says_it(tmp_path: Path) -> None:
    """A constant that grows from step to step changes the loss and no gradient."""
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, logging_steps=1, save_strategy="no", max_steps=15)
    allocation.attach(trainer)
    compute = trainer.compute_loss
    trainer.compute_loss = lambda *args, **options: compute(*args, **options) + trainer.state.global_step
    with pytest.warns(
        LorankWarning, match="the training loss rose while the ranks were decided.*lower the learning rate"
    ):
        trainer.train()
    assert allocation.plan.spent > 0


def scores(**values: list[float]) -> ImportanceScores:
    return ImportanceScores({n: np.array(v) for n, v in values.items()}, dict.fromkeys(values, 2), None, {})


def test_modules_most_of_whose_triplets_have_no_score_are_named() -> None:
    alive = scores(a=[0.0, 1.0], b=[-1.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_dead_triplets(alive)
    dead = scores(a=[0.0, 1.0], b=[0.0, 0.0], c=[0.0, 0.0, 1.0])
    said = r"exactly 0 for 5 of 7 triplets, .*: b \(2 of 2\), c \(2 of 3\); look whether"
    with pytest.warns(LorankWarning, match=said):
        warn_of_dead_triplets(dead)
    with pytest.warns(LorankWarning, match=r"c \(1 of 1\) and 1 more modules"):
        warn_of_dead_triplets(scores(**{name: [0.0] for name in "abcd"}))
