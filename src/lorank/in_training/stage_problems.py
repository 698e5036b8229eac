"""What is wrong with a stage that has decided ranks, although it ended: its loss rose, or triplets have no score."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lorank.errors import LorankWarning
from lorank.scores import ImportanceScores

LEAST_LOSSES = 6
CHANCE = 0.005  # of a one-sided Welch test: a loss that only varies is above it
_NAMED = 3


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


def warn_of_dead_triplets(scores: ImportanceScores) -> None:
    """Say it where more than half of the triplets of a module, or of all, have a score of exactly 0.

    A triplet that was cut has the score of its last cut.

    Warns:
        LorankWarning: how many triplets, in which modules.

    """
    dead = {name: int((values == 0).sum()) for name, values in scores.scores.items()}
    units = {name: len(values) for name, values in scores.scores.items()}
    named = [name for name, count in dead.items() if 2 * count > units[name]]
    count, total = sum(dead.values()), sum(units.values())
    if named:
        shown = ", ".join(f"{name} ({dead[name]} of {units[name]})" for name in named[:_NAMED])
        more = f" and {len(named) - _NAMED} more modules" if len(named) > _NAMED else ""
        warnings.warn(
            f"the score is exactly 0 for {count:,} of {total:,} triplets, which had no influence on the loss when they were "
            f"scored: {shown}{more}; look whether the forward pass reaches these modules, leave them out with exclude_modules, "
            "or train in a wider dtype",
            LorankWarning,
            stacklevel=3,
        )
