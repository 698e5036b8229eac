"""From losses to a verdict: do ranks matter, not more than so much, or can it not be told. No model and no recipe is needed."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lorank.errors import ComparisonError
from lorank.headroom.statistics import (
    Estimate,
    Spread,
    bound_of_best,
    cross_fitted_gains,
    crossed_mean,
    spread_of,
)

Verdict = Literal["ranks matter", "not more than", "cannot tell"]
LEVEL, SMALLEST, LEAST_SEEDS = 0.05, 0.02, 3
_SCHEDULE = (3, 5, 8, 12, 18, 27, 40, 60, 90, 135, 200)
_FIRST_SHARES = (0.2, 0.3, 0.25)  # of the level, for the first looks; then each look has half of the one before


@dataclass(frozen=True)
class Look:
    """A number of seeds at which the result is looked at, and the chance of a false claim that this look may have."""

    seeds: int
    level: float


@dataclass(frozen=True)
class Headroom:
    """What the losses of some plans say about ranks.

    Attributes:
        verdict: "not more than": the gain is below the smallest that counts. Else "ranks matter": the gain is above 0. Else
            "cannot tell".
        gain: of a plan that was chosen on one seed, measured on other seeds and other examples; in units of the loss.
        look: seeds and level of this verdict.
        best: upper bound of the gain of the best plan, if it were known which that is.
        smallest: the smallest gain that counts.
        uniform_loss: mean loss of uniform ranks.
        spread: of plans, of seeds, and of the rest.
        plans: how many were tried beside uniform ranks.
        examples: how many the losses are of.
        seeds_needed: seeds that would give a verdict if mean and spread stay as they are; None where there is one, or where more
            seeds would not help.

    """

    verdict: Verdict
    gain: Estimate
    look: Look
    best: float
    smallest: float
    uniform_loss: float
    spread: Spread
    plans: int
    examples: int
    seeds_needed: int | None = None

    @property
    def interval(self) -> tuple[float, float]:
        """Bounds of the gain, each of them wrong with probability `look.level`."""
        return self.gain.interval(self.look.level)

    @property
    def sentence(self) -> str:
        """The verdict in words."""
        low, high = self.interval
        among = f"among the {self.plans} plans tried"
        measured = f"{self.gain.mean:+.4f} ({low:+.4f} to {high:+.4f})"
        if self.verdict == "ranks matter":
            return (
                f"Ranks matter by about {self._share(self.gain.mean)}: a plan that was chosen by one run, {among}, gains "
                f"{measured} over uniform ranks, whose loss is {self.uniform_loss:.4f}."
            )
        if self.verdict == "not more than":
            return (
                f"A plan that is chosen by one run, {among}, gains not more than {self._share(max(0.0, high))} over uniform "
                f"ranks, whose loss is {self.uniform_loss:.4f}: measured {measured}."
            )
        more = (
            f"about {self.seeds_needed} seeds would be needed"
            if self.seeds_needed
            else "more seeds alone would not help, more held-out examples would"
        )
        return (
            f"Cannot tell with {self.look.seeds} seeds: a plan that was chosen by one run gains {measured}, and the smallest "
            f"gain that counts is {self.smallest:.4f} ({self._share(self.smallest)}); {more}."
        )

    def _share(self, gain: float) -> str:
        """A gain as a share of the loss of uniform ranks."""
        return f"{gain / self.uniform_loss:.1%}" if self.uniform_loss > 0 else f"{gain:.4g}"


def looks_until(most: int, made: Sequence[Look] = (), *, level: float = LEVEL) -> Iterator[Look]:
    """When the result is looked at, up to a number of seeds.

    The levels of all looks, however many there are, sum up to at most `level`: the k-th look has a fixed share of it.
    So an interrupted or prolonged measurement keeps its promise, as long as `made` names the looks that were made.

    Args:
        most: seeds at the last look.
        made: looks that were made before; those that follow have more seeds.
        level: chance of a false claim over all looks, of either kind.

    """
    done = made[-1].seeds if made else 0
    planned = [*(seeds for seeds in _SCHEDULE if done < seeds < most), *([most] if most > done else [])]
    for number, seeds in enumerate(planned, len(made)):
        last = len(_FIRST_SHARES) - 1
        share = _FIRST_SHARES[min(number, last)] * 0.5 ** max(0, number - last)
        yield Look(seeds, level * share)


def headroom_from_losses(
    losses: np.ndarray, halves: np.ndarray | None = None, *, look: Look | None = None, smallest: float = SMALLEST
) -> Headroom:
    """What can be said of the gain by ranks, from the losses alone.

    Args:
        losses: `(plans, seeds, examples)`: of each example, after a training of each plan with each seed; the first plan is
            uniform ranks. Plans of one seed should have been trained on the same batches from the same draws.
        halves: `(examples,)` bool: the half of each example. A plan is chosen on one half and measured on the other, so
            examples that are alike belong into one half. None: every other example.
        look: level of the claims; None: all seeds, and the whole of 0.05.
        smallest: the smallest gain that counts, as a share of the loss of uniform ranks.

    Raises:
        ComparisonError: too few plans, seeds or examples, or losses that are not finite.

    """
    losses = np.asarray(losses, dtype=np.float64)
    if losses.ndim != 3 or losses.shape[0] < 2 or losses.shape[1] < 2 or losses.shape[2] < 4:
        raise ComparisonError(
            f"losses have the shape {losses.shape}; needed: (plans, seeds, examples), at least 2 plans with uniform ranks first, "
            "2 seeds and 4 examples"
        )
    if not np.isfinite(losses).all():
        plan, seed, _ = np.argwhere(~np.isfinite(losses))[0]
        raise ComparisonError(
            f"losses of plan {plan}, seed {seed}, are not finite; lower train.learning_rate, or leave this plan out"
        )
    plans, seeds, examples = losses.shape
    halves = np.arange(examples) % 2 == 0 if halves is None else np.asarray(halves, dtype=bool)
    if halves.shape != (examples,) or min(halves.sum(), (~halves).sum()) < 2:
        raise ComparisonError(
            f"halves have the shape {halves.shape}, {int(halves.sum())} examples in the first; needed: a bool for each of "
            f"{examples} examples, and at least 2 in either half"
        )
    look = look or Look(seeds, LEVEL)
    gain = crossed_mean(cross_fitted_gains(losses, halves))
    means = losses.mean(2)
    uniform = float(means[0].mean())
    counts = smallest * abs(uniform)
    low, high = gain.interval(look.level)
    # A gain that is shown, and shown to be too small to count, is no reason for another plan.
    verdict: Verdict = "not more than" if high < counts else "ranks matter" if low > 0 else "cannot tell"
    return Headroom(
        verdict=verdict,
        gain=gain,
        look=look,
        best=bound_of_best(losses, look.level),
        smallest=counts,
        uniform_loss=uniform,
        spread=spread_of(means),
        plans=plans - 1,
        examples=examples,
        seeds_needed=None if verdict != "cannot tell" else _seeds_needed(gain, look, counts),
    )


def headroom_at_looks(
    losses: np.ndarray, halves: np.ndarray | None = None, *, level: float = LEVEL, smallest: float = SMALLEST
) -> Headroom:
    """The verdict of a measurement that stops at the first look with a clear answer; as `headroom_from_losses`.

    All losses are there already, but only those of the seeds up to the look are used.
    """
    headroom = None
    for look in looks_until(np.shape(losses)[1], level=level):
        headroom = headroom_from_losses(losses[:, : look.seeds], halves, look=look, smallest=smallest)
        if headroom.verdict != "cannot tell":
            break
    if headroom is None:
        raise ComparisonError("losses have no seeds; give (plans, seeds, examples)")
    return headroom


def _seeds_needed(gain: Estimate, look: Look, smallest: float) -> int | None:
    """Seeds at which one of the two claims could be made, were mean and spread the same and the level that of this look."""
    for count in range(look.seeds + 1, _SCHEDULE[-1] + 1):
        half = gain.with_seeds(count).half_width(look.level)
        if not math.isfinite(half) or gain.mean - half > 0 or gain.mean + half < smallest:
            return count
    return None
