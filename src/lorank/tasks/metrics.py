"""What a run is judged by: scikit-learn's, scipy's and rouge-score's metrics on predictions of the test part."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sklearn_metrics

from lorank.errors import RecipeError
from lorank.tasks.section import SFT_COLUMNS
from lorank.tasks.text_tasks import TEXT_TASKS, Answer

Metric = Callable[[Any, Any], float]


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
# Of every task that writes: from the mean loss of a target token, and the share of targets that are the likeliest token.
TOKENS: Mapping[str, Metric] = {
    "log_likelihood": lambda loss, right: -float(loss),
    "token_accuracy": lambda loss, right: float(right),
}


def rouge(targets: Sequence[str], written: Sequence[str], kind: str) -> float:
    """Mean F-measure of rouge-score, with Porter's stemmer; ASCII letters and digits alone are seen.

    Args:
        targets: one for each text.
        written: texts of a model.
        kind: rouge1, rouge2, rougeL (over the whole text), or rougeLsum (line by line, as ROUGE-1.5.5 has it by sentences).

    """
    from rouge_score.rouge_scorer import RougeScorer  # slow to import, and for tasks that write alone

    scorer = RougeScorer([kind], use_stemmer=True)
    return float(np.mean([scorer.score(t, w)[kind].fmeasure for t, w in zip(targets, written, strict=True)]))


def exact_match(targets: Sequence[str], written: Sequence[str], answer: Answer) -> float:
    """Share of texts whose answer is the target's; a text without an answer is wrong.

    Args:
        targets: one for each text.
        written: texts of a model.
        answer: reads the answer out of either.

    """
    answers = [(answer(target), answer(text)) for target, text in zip(targets, written, strict=True)]
    return float(np.mean([right == given and given is not None for right, given in answers]))


def need_texts(names: Iterable[str]) -> bool:
    """Whether a metric of a task that writes is of what is written, so that texts have to be generated."""
    return any(name not in TOKENS for name in names)


def choose_metrics(task: str, names: Sequence[str] | None, classes: int | None = None) -> dict[str, Metric]:
    """Metrics of a task by name; all of them (of tasks that write: their usual ones) when no name is given.

    F1 is that of the second class where there are two (GLUE counts class 1), else the mean over classes.

    Raises:
        RecipeError: a name that this task does not have.

    """
    known: dict[str, Metric] = {**(CLASSIFICATION if task == "classification" else REGRESSION)}
    usual: Sequence[str] = tuple(known)
    if task in TEXT_TASKS:
        usual = TEXT_TASKS[task].metrics
        known = {kind: partial(rouge, kind=kind) for kind in ("rouge1", "rouge2", "rougeL", "rougeLsum")}
        known |= {"exact_match": partial(exact_match, answer=TEXT_TASKS[task].answer), **TOKENS}
    if task in SFT_COLUMNS:
        known, usual = dict(TOKENS), tuple(TOKENS)
    if classes == 2:
        known["f1"] = partial(_f1, average="binary")
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise RecipeError(f"metrics: {unknown[0]!r} is no metric of {task}; allowed: {', '.join(known)}")
    return {name: known[name] for name in names or usual}
