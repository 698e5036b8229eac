"""What a run is judged by: scikit-learn's and scipy's metrics on predictions of the test part."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lorank.errors import RecipeError

Metric = Callable[[np.ndarray, np.ndarray], float]


def _f1(labels: np.ndarray, predicted: np.ndarray, average: str) -> float:
    return float(sklearn_metrics.f1_score(labels, predicted, average=average, zero_division=0))


CLASSIFICATION: Mapping[str, Metric] = {
    "accuracy": lambda labels, predicted: float(sklearn_metrics.accuracy_score(labels, predicted)),
    "f1": partial(_f1, average="macro"),
    "matthews": lambda labels, predicted: float(sklearn_metrics.matthews_corrcoef(labels, predicted)),
}
REGRESSION: Mapping[str, Metric] = {
    "pearson": lambda labels, predicted: float(stats.pearsonr(labels, predicted).statistic),
    "spearman": lambda labels, predicted: float(stats.spearmanr(labels, predicted).statistic),
}


def choose_metrics(task: str, names: Sequence[str] | None, classes: int | None = None) -> dict[str, Metric]:
    """Metrics of a task by name; all of them when no name is given.

    F1 is that of the second class where there are two (GLUE counts class 1), else the mean over classes.

    Raises:
        RecipeError: a name that this task does not have.

    """
    known = {**(CLASSIFICATION if task == "classification" else REGRESSION)}
    if classes == 2:
        known["f1"] = partial(_f1, average="binary")
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise RecipeError(f"metrics: {unknown[0]!r} is no metric of {task}; allowed: {', '.join(known)}")
    return {name: known[name] for name in names or known}
