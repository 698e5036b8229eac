"""What is wrong with a stage that has decided ranks, although it ended: its loss rose."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorank.errors import LorankWarning

LEAST_LOSSES = 6
CHANCE = 0.005  # of a one-sided Welch test: a loss that only varies is above it


def rising_loss(losses: Sequence[float]) -> tuple[float, float] | None:
    """Means of the first and the last fifth of the losses (three at least), where the last is clearly above the first.

    Clearly: the difference is so large beside its standard error, `sqrt(s_1²/k + s_2²/k)`, that Welch's one-sided t-test gives
    a probability below `CHANCE`. The losses are taken for independent. Fewer than `LEAST_LOSSES`, or one that is not finite:
    None.
    """
    from scipy import stats  # slow to import, and asked for once a training

    part = max(3, len(losses) // 5)
    if len(losses) < LEAST_LOSSES or not all(map(math.isfinite, losses)):
        return None
    first, last = np.array(losses[:part]), np.array(losses[-part:])
    before, after = float(first.mean()), float(last.mean())
    if first.std() == last.std() == 0:  # the test has no standard error then
        return (before, after) if after > before else None
    chance = stats.ttest_ind(last, first, equal_var=False, alternative="greater").pvalue
    return (before, after) if chance < CHANCE else None


def warn_of_rising_loss(log_history: Sequence[Mapping[str, Any]], last: int | None, rate: str) -> None:
    """Say it where the training loss rose in the stage that decided the ranks.

    Args:
        log_history: of `TrainerState`; nothing but what was logged is looked at.
        last: step of the last cut; what is trained after it decides nothing. None: all steps.
        rate: what the learning rate of the stage is called.

    Warns:
        LorankWarning: `rising_loss`.

    """
    losses = [
        float(entry["loss"]) for entry in log_history if "loss" in entry and (last is None or entry["step"] <= last)
    ]
    if (risen := rising_loss(losses)) is not None:
        warnings.warn(
            f"the training loss rose while the ranks were decided, from {risen[0]:.4g} (mean of its first logged values) to "
            f"{risen[1]:.4g} (mean of its last ones), so the scores are those of a training that went wrong; lower {rate}, or "
            "raise its warm-up",
            LorankWarning,
            stacklevel=3,
        )
