"""How much of a plan the choice of calibration examples decided: the same allocation on resampled scores."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lorank.plan import RankPlan
from lorank.scores import ImportanceScores

NOISY = 0.1  # share of a plan's parameters that noise may move without a word


def plan_stability(
    scores: ImportanceScores, plan: RankPlan, ranks_of: Callable[[np.ndarray], np.ndarray]
) -> dict[str, Any]:
    """Compare a plan with those that other calibration examples would have given.

    Args:
        scores: of modules, with resamples.
        plan: made from `scores`.
        ranks_of: the allocation that made it: scores `(modules,)` -> ranks `(modules,)`.

    Returns:
        JSON values. `halves` compares the two halves of the calibration examples with each other, `bootstrap` each of its
        draws with the plan (medians over draws, and `worst_moved_share`, the 95th percentile):
        `spearman` of the scores, `changed_modules` whose rank differs, `moved_share` of the parameters that are spent on
        another module. A resample in which no module is worth anything is left out.
        Spearman is None where it is not defined (equal scores).

    """
    found: dict[str, Any] = {}
    names = tuple(scores.scores)
    costs = np.array([plan.unit_costs[name] for name in names])
    resampled = {
        kind: np.stack([values[name] for name in names], axis=1) for kind, values in (scores.resamples or {}).items()
    }
    nothing = np.zeros((0, len(names)))
    halves = resampled.get("halves", nothing)
    if len(halves) == 2 and all(half.max() > 0 for half in halves):
        one, other = (ranks_of(half) for half in halves)
        found["halves"] = {
            "spearman": _correlation(_ranked(halves[0]), _ranked(halves[1])),
            "changed_modules": int((one != other).sum()),
            "moved_share": _moved_share(one, other, costs),
        }
    draws = [draw for draw in resampled.get("bootstrap", nothing) if draw.max() > 0]
    if draws:
        planned, made = np.array([plan.ranks[name] for name in names]), [ranks_of(draw) for draw in draws]
        moved = [_moved_share(planned, ranks, costs) for ranks in made]
        ranked = _ranked(np.array([scores.scores[name][0] for name in names]))
        correlations = [c for draw in draws if (c := _correlation(ranked, _ranked(draw))) is not None]
        found["bootstrap"] = {
            "draws": len(draws),
            "spearman": float(np.median(correlations)) if correlations else None,
            "changed_modules": int(np.median([(planned != ranks).sum() for ranks in made])),
            "moved_share": float(np.median(moved)),
            "worst_moved_share": float(np.quantile(moved, 0.95)),
        }
    return found


def _moved_share(one: np.ndarray, other: np.ndarray, costs: np.ndarray) -> float:
    """See `RankPlan.moved_share`."""
    spent = int((costs * one).sum())
    return int((costs * np.maximum(0, one - other)).sum()) / spent if spent else 0.0


def _ranked(values: np.ndarray) -> np.ndarray:
    """Place of each value in ascending order, from 1; equal ones share the mean of their places."""
    order = np.argsort(values, kind="stable")
    is_new = np.concatenate([[True], np.diff(values[order]) != 0])
    starts = np.append(np.flatnonzero(is_new), len(values))
    group = np.empty(len(values), dtype=np.intp)
    group[order] = np.cumsum(is_new)
    return 0.5 * (starts[group] + starts[group - 1] + 1)


def _correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Spearman's correlation, from places in order; None where all places of one are the same. (scipy's is slow to load.)"""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(np.corrcoef(np.column_stack([one, other]), rowvar=False)[1, 0])
