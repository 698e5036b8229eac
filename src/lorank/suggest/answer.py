"""What the short runs say: in numbers, in words, and as a table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorank.errors import TrainingError
from lorank.report.split_table import SplitTable
from lorank.suggest.curve import FittedCurve, fit_with_uncertainty
from lorank.suggest.enough import Difference, difference, smallest_enough
from lorank.suggest.question import Question
from lorank.suggest.rates import TriedRates


@dataclass(frozen=True)
class Answer:
    """The answer to a question.

    Attributes:
        ranks: that were tried, ascending.
        parameters: of each.
        rates: learning rate of each.
        means: mean loss of each on the held-out training examples; NaN where it diverged.
        differences: of each to the largest.
        within: loss that may be lost, as it was asked for.
        allowed: the same as a number.
        chosen: place of the smallest rank that is shown to be enough.
        fitted: the curve; None where fewer than four budgets have a loss.
        lora: rank -> rates that were tried for it.
        triplets: rates that were tried for triplets.
        steps: of each run.
        seeds: that were run.
        snippet: YAML.
        rate_key: key of the recipe that holds the learning rate of plain LoRA.

    """

    ranks: tuple[int, ...]
    parameters: tuple[int, ...]
    rates: tuple[float, ...]
    means: tuple[float, ...]
    differences: tuple[Difference, ...]
    within: str
    allowed: float
    chosen: int
    fitted: FittedCurve | None
    lora: Mapping[int, TriedRates] = field(default_factory=dict)
    triplets: TriedRates | None = None
    steps: int = 0
    seeds: tuple[int, ...] = ()
    snippet: str = ""
    rate_key: str = "train.learning_rate"

    @property
    def by_the_means(self) -> int:
        """Place of the smallest rank whose mean, and those of all larger ones, are within what may be lost."""
        means = [Difference(one.mean, 0.0, one.mean) for one in self.differences]
        return smallest_enough(means, self.allowed)

    @property
    def lowest(self) -> int:
        """Place of the rank with the lowest mean."""
        return min(range(len(self.means)), key=lambda k: self.means[k] if math.isfinite(self.means[k]) else math.inf)

    @property
    def to_start_with(self) -> int:
        """Place of the rank that the snippet has: what is shown to be enough, and the lowest mean where nothing is."""
        return self.chosen if self.chosen < len(self.ranks) - 1 else self.lowest

    def words(self) -> list[str]:
        """The answer in sentences."""
        rank, largest = self.ranks[self.chosen], self.ranks[-1]
        if self.chosen < len(self.ranks) - 1:
            lost = self.differences[self.chosen]
            said = [
                f"Uniform rank {rank} ({self.parameters[self.chosen]:,} parameters) is enough: against rank {largest} it loses "
                f"{_signed(lost.mean)}, less than {_signed(lost.upper)} with 95 % confidence; {self.allowed:.4f} was allowed "
                f"({self.within})."
            ]
            if self.chosen == 0:
                said.append(
                    "It is the smallest rank that was tried; a smaller budget (rank=N, a mean below 1) may do too."
                )
        else:
            said = [
                f"No rank below {largest} is shown to be enough, which is to lose less than {self.allowed:.4f} ({self.within})."
            ]
        if (likely := self.by_the_means) < self.chosen:
            said.append(
                f"Rank {self.ranks[likely]} may be enough: its mean loses {_signed(self.differences[likely].mean)}; more seeds "
                "or more held-out examples would tell."
            )
        if (best := self.lowest) < self.chosen:
            said.append(
                f"The lowest mean is that of rank {self.ranks[best]}, {self.means[best]:.4f}; rank {rank} has "
                f"{self.means[self.chosen]:.4f}."
            )
            if best == self.to_start_with:
                said.append(f"So the keys below start with rank {self.ranks[best]}, which is not shown to be right.")
        return [*said, *self._about_the_curve(), *self._about_rates()]

    def _about_the_curve(self) -> list[str]:
        largest = self.ranks[-1]
        if self.fitted is None:
            return ["No curve is fitted: fewer than four ranks have a loss that is finite."]
        if self.fitted.problem:
            return [f"The curve says little: {self.fitted.problem}."]
        gain, low, high = self.fitted.gain_beyond(self.parameters[-1])
        said = f"By the fitted curve, rank {2 * largest} would gain {gain:.4f} over rank {largest}"
        said += f" (90 %: {low:.4f} to {high:.4f})"
        if gain > self.allowed:
            return [
                f"{said}, more than was allowed: the largest rank that was tried may be too small, give larger --ranks."
            ]
        return [f"{said}."]

    def _about_rates(self) -> list[str]:
        said = []
        for rank, tried in self.lora.items():
            if tried.at_an_end:
                said.append(
                    f"The best rate of rank {rank}, {tried.best:.2g}, is at the end of what was tried: set {self.rate_key} "
                    "to it and ask again."
                )
        if self.triplets is not None and self.triplets.at_an_end:
            said.append(f"The best rate of triplets, {self.triplets.best:.2g}, is at the end of what was tried.")
        said.append(f"All of this is of {self.steps} steps; longer trainings may use more rank, and lower rates.")
        return said

    def table(self) -> SplitTable:
        """One row for each rank."""
        columns = ("budget", "parameters", "rate", "loss", "curve", "lost", "at most (95 %)", "enough")
        table = SplitTable("held-out training examples", columns)
        for k, rank in enumerate(self.ranks):
            curve = self.fitted.curve.at(self.parameters[k]) if self.fitted is not None else math.nan
            last = k == len(self.ranks) - 1
            table.add_row(
                f"r={rank}",
                f"{self.parameters[k]:,}",
                f"{self.rates[k]:.2g}",
                _number(self.means[k]),
                _number(float(curve)),
                "-" if last else _signed(self.differences[k].mean),
                "-" if last else _signed(self.differences[k].upper),
                "yes" if k >= self.chosen else "not shown",
            )
        return table

    def rate_table(self) -> SplitTable:
        """One row for each rate that was tried."""
        table = SplitTable("learning rates", ("of", "rate", "loss", ""))
        tried = {f"LoRA, rank {rank}": rates for rank, rates in self.lora.items()}
        tried |= {"triplets": self.triplets} if self.triplets is not None else {}
        for name, rates in tried.items():
            for rate, loss in zip(rates.rates, rates.losses, strict=True):
                table.add_row(name, f"{rate:.2g}", _number(loss), "best" if rate == rates.best else "")
        return table

    def record(self) -> dict[str, Any]:
        """The answer for a JSON file."""
        budgets = [
            {
                "budget": f"r={rank}",
                "parameters": self.parameters[k],
                "learning_rate": self.rates[k],
                "loss": _finite(self.means[k]),
                "lost": _finite(self.differences[k].mean),
                "lost_error": _finite(self.differences[k].error),
                "lost_at_most": _finite(self.differences[k].upper),
                "enough": k >= self.chosen,
            }
            for k, rank in enumerate(self.ranks)
        ]
        return {
            "format": "lorank.suggestion",
            "version": 1,
            "budget": f"r={self.ranks[self.to_start_with]}",
            "words": self.words(),
            "within": {"asked": self.within, "loss": self.allowed},
            "steps": self.steps,
            "seeds": list(self.seeds),
            "budgets": budgets,
            "curve": self._curve_record(),
            "rates": {
                "lora": {str(rank): tried.record() for rank, tried in self.lora.items()},
                "triplets": self.triplets.record() if self.triplets is not None else None,
            },
        }

    def _curve_record(self) -> dict[str, Any] | None:
        if self.fitted is None:
            return None
        curve, (gain, low, high) = self.fitted.curve, self.fitted.gain_beyond(self.parameters[-1])
        powers = [draw.power for draw in self.fitted.draws]
        floors = [draw.floor for draw in self.fitted.draws]
        return {
            "form": "floor + gain * (parameters / smallest) ** -power",
            "smallest": curve.smallest,
            "floor": curve.floor,
            "gain": curve.gain,
            "power": curve.power,
            "floor_90": [float(value) for value in np.quantile(floors, [0.05, 0.95])],
            "power_90": [float(value) for value in np.quantile(powers, [0.05, 0.95])],
            "doubling_gains": gain,
            "doubling_gains_90": [low, high],
            "residuals": list(self.fitted.residuals),
            "problem": self.fitted.problem or None,
        }


def answer_of(question: Question, parameters: Sequence[int], rates: Sequence[float], losses: np.ndarray) -> Answer:
    """Judge the losses of the short runs.

    Args:
        question: what was asked.
        parameters: of each rank.
        rates: learning rate of each.
        losses: `(ranks, seeds, examples)`; NaN where a run diverged.

    Raises:
        TrainingError: the largest rank diverged, so that there is nothing to compare with.

    """
    if not np.isfinite(losses[-1]).all():
        raise TrainingError(
            f"rank {question.ranks[-1]} has a loss that is not finite at the rate {rates[-1]:.2g}; lower the learning rate "
            "of plain LoRA in the recipe, or leave this rank out"
        )
    differences = tuple(difference(one, losses[-1]) for one in losses)
    means = losses.mean((1, 2))
    allowed = question.allowed_loss(float(means[-1]))
    finite = np.isfinite(means)
    fitted = None
    if finite.sum() >= 4:
        fitted = fit_with_uncertainty([p for p, good in zip(parameters, finite, strict=True) if good], losses[finite])
    return Answer(
        tuple(question.ranks), tuple(parameters), tuple(rates), tuple(map(float, means)), differences, question.within,
        allowed, smallest_enough(differences, allowed), fitted,
    )  # fmt: skip


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _signed(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "-"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"
