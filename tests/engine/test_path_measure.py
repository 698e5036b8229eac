"""How many passes the quadrature check at the last cut makes."""

import pytest

from lorank.engine.options import Estimator, TrainingBatchOptions
from lorank.engine.path_measure import last_check_intervals


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
