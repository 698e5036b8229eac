"""How many passes the checks beside scoring make."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lorank.engine.options import Estimator, TrainingBatchOptions, comparisons, is_compared
from lorank.engine.path_measure import PathMeasure, last_check_intervals


@pytest.mark.parametrize(
    ("steps", "intervals"), [(1, 2), (200, 2), (249, 2), (250, 4), (349, 4), (350, 6), (449, 6), (450, 8), (10**6, 8)]
)
def test_of_a_short_training_the_check_takes_a_fiftieth_or_three_passes(steps: int, intervals: int) -> None:
    assert last_check_intervals(TrainingBatchOptions(estimator="single-pass"), None, steps) == intervals
    assert intervals + 1 <= max(3, steps / 50)


@pytest.mark.parametrize(
    ("estimator", "own", "checked"), [("one-sample", 20, 20), ("unbiased", 7, 8), ("trapezoid", None, 8)]
)
def test_an_estimator_with_intervals_is_checked_at_its_own(estimator: Estimator, own: int | None, checked: int) -> None:
    assert last_check_intervals(TrainingBatchOptions(estimator=estimator), own, 10) == checked


def test_losses_are_compared_at_the_first_and_at_powers_of_the_growth() -> None:
    assert [number for number in range(1, 600) if is_compared(number, 8)] == [1, 8, 64, 512]
    assert [comparisons(scored, 8) for scored in (0, 1, 7, 8, 63, 64)] == [0, 1, 1, 2, 2, 3]
    assert all(comparisons(scored, 2) == scored.bit_length() for scored in range(100))


def test_the_logged_loss_of_scoring_passes_leaves_out_what_is_not_finite() -> None:
    """Of a step that a loss scaler, or `on_nonfinite: skip`, leaves out."""
    measure: Any = SimpleNamespace(_loss_sum=0.0, _losses=0)
    assert PathMeasure.scalars(measure) == {}
    loss = PathMeasure.counted(measure, lambda _, value: torch.tensor(value, dtype=torch.bfloat16))
    for value in (1.0, float("nan"), 2.0, float("inf")):
        loss(torch.nn.Identity(), value)
    assert PathMeasure.scalars(measure) == {"rank_allocation/scoring_loss": 1.5}
    assert PathMeasure.scalars(measure) == {}
