"""What a run is judged by: scikit-learn's and scipy's metrics on predictions of the test part."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lorank.errors import RecipeError

Metric = Callable[[np.ndarray, np.ndarray], float]


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    # GLUE's F1 is that of class 1; with more than two classes each counts the same.
    average = "binary" if set(labels) | set(predicted) <= {0, 1} else "macro"
    return float(sklearn_metrics.f1_score(labels, predicted, average=average, zero_division=0))


CLASSIFICATION: Mapping[str, Metric] = {
    "accuracy": lambda labels, predicted: float(sklearn_metrics.accuracy_score(labels, predicted)),
    "f1": _f1,
    "matthews": lambda labels, predicted: float(sklearn_metrics.matthews_corrcoef(labels, predicted)),
}
REGRESSION: Mapping[str, Metric] = {
    "pearson": lambda labels, predicted: float(stats.pearsonr(labels, predicted).statistic),
    "spearman": lambda labels, predicted: float(stats.spearmanr(labels, predicted).statistic),
}


def choose_metrics(task: str, names: Sequence[str] | None) -> dict[str, Metric]:
    """Metrics of a task by name; all of them when no name is given.

    Raises:
        RecipeError: a name that this task does not have.

    """
    known = CLASSIFICATION if task == "classification" else REGRESSION
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise RecipeError(f"metrics: {unknown[0]!r} is no metric of {task}; allowed: {', '.join(known)}")
    return {name: known[name] for name in names or known}
