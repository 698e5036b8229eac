"""A classifier that has learned nothing but which class is frequent."""

import warnings
from collections.abc import Sequence

import numpy as np

from lorank.errors import LorankWarning

LEAST_EXAMPLES = 50
ONE_CLASS = 0.99  # share of predictions that is called one class
MOST_LABELS = 0.95  # labels of that class: above this share, to predict it alone may be the best that a model can do


def warn_of_one_class(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> None:
    """Say it where a classifier predicts a single class for data that have several.

    Args:
        predicted: class of each example, `(examples,)` integers.
        labels: its true class, `(examples,)` integers.
        names: of classes.

    Warns:
        LorankWarning: of `LEAST_EXAMPLES` predictions or more at least 99 % are one class, and at most 95 % of the labels are.

    """
    if len(predicted) < LEAST_EXAMPLES:
        return
    most = int(np.bincount(predicted).argmax())
    share, true = float((predicted == most).mean()), float((labels == most).mean())
    if share >= ONE_CLASS and true <= MOST_LABELS:
        name = repr(names[most]) if most < len(names) else str(most)
        warnings.warn(
            f"the model predicts one class: {name} for {share:.1%} of {len(predicted):,} examples, and {true:.1%} of their "
            "labels are; its metrics are those of no model. Training has collapsed or learned nothing: lower the learning rate "
            "(train.learning_rate), or raise train.warmup; if the training loss never fell, train longer",
            LorankWarning,
            stacklevel=3,
        )
