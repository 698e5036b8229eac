import numpy as np
import pytest

from lorank import LorankError
from lorank.tasks.metrics import choose_metrics


def test_classification_by_hand() -> None:
    labels, predicted = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    metrics = choose_metrics("classification", None, classes=2)
    assert metrics["accuracy"](labels, predicted) == pytest.approx(0.6)
    assert metrics["f1"](labels, predicted) == pytest.approx(2 / 3)  # of class 1, as GLUE counts
    assert metrics["matthews"](labels, predicted) == pytest.approx((2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    # With three classes it is the mean over them, whatever was predicted.
    metrics, three = choose_metrics("classification", ["f1"], classes=3), np.array([0, 1, 2])
    assert metrics["f1"](labels, predicted) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics["f1"](three, np.array([0, 1, 1])) == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_regression_by_hand() -> None:
    metrics = choose_metrics("regression", ["spearman", "pearson"])
    assert list(metrics) == ["spearman", "pearson"]
    assert metrics["spearman"](np.array([1.0, 2, 3]), np.array([1.0, 4, 9])) == pytest.approx(1)
    assert metrics["pearson"](np.array([1.0, 2, 3]), np.array([2.0, 4, 6])) == pytest.approx(1)


def test_a_metric_of_the_other_task_is_refused() -> None:
    with pytest.raises(LorankError, match="allowed: pearson, spearman"):
        choose_metrics("regression", ["accuracy"])
