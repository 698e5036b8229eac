"""What is asked: budgets, steps, seeds, and how much may be lost; refused before any weights are loaded where it cannot work."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorank.errors import BudgetError, RecipeError

RANKS = (1, 2, 4, 8, 16)
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the recipe's learning rate
MOST_STEPS = 150  # of a short run, unless --steps says otherwise
LEAST_SEEDS = 2
LEAST_STEPS = 10  # fewer say nothing about a training


@dataclass(frozen=True)
class Question:
    """Options of `lorank suggest`.

    Attributes:
        ranks: uniform ranks that are tried, ascending.
        steps: optimizer steps of each short run; None: those of the recipe's `train`, and no more than 150.
        seeds: how many.
        within: loss that may be lost, `2%` of the largest budget's loss or a number.
        minutes: most that all runs may take.
        fraction: of the training data that is held out to judge on.
        side_by_side: adapters in one pass; None: all.
        factors: of the recipe's learning rate that are tried.
        triplets: whether a learning rate for triplets is looked for.

    """

    ranks: Sequence[int] = RANKS
    steps: int | None = None
    seeds: int = 3
    within: str = "2%"
    minutes: float = 60.0
    fraction: float = 0.2
    side_by_side: int | None = None
    factors: Sequence[float] = field(default=FACTORS)
    triplets: bool = True

    def __post_init__(self) -> None:
        wrong = []
        ranks = list(self.ranks)
        if len(set(ranks)) < 4 or min(ranks) < 1 or ranks != sorted(set(ranks)):
            wrong.append(
                f"ranks are {ranks}; give four different ranks or more in ascending order, for example 1,2,4,8,16"
            )
        if self.steps is not None and self.steps < LEAST_STEPS:
            wrong.append(f"steps is {self.steps}; give {LEAST_STEPS} or more, fewer say nothing about a training")
        if self.seeds < LEAST_SEEDS:
            wrong.append(f"seeds is {self.seeds}; give {LEAST_SEEDS} or more, or nothing is known about their noise")
        if not 0 < self.minutes < math.inf:
            wrong.append(f"minutes is {self.minutes}; give a number above 0")
        if not 0 < self.fraction < 0.9:
            wrong.append(f"fraction is {self.fraction}; give a share of the training data between 0 and 0.9")
        if self.side_by_side is not None and self.side_by_side < 1:
            wrong.append(f"side_by_side is {self.side_by_side}; give 1 or more")
        if len(self.factors) < 3 or any(not 0 < factor < math.inf for factor in self.factors):
            wrong.append(f"factors are {list(self.factors)}; give three or more numbers above 0")
        if wrong:
            raise RecipeError("\n".join(wrong))
        self.allowed_loss(1.0)

    def allowed_loss(self, of_largest: float) -> float:
        """How much more loss than the largest budget a budget may have, and still be enough.

        Raises:
            BudgetError: `within` is no percentage and no number above 0.

        """
        if match := re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(%?)", self.within.strip()):
            value = float(match[1])
            if value > 0:
                return value / 100 * of_largest if match[2] else value
        raise RecipeError(f"within is {self.within!r}; give a percentage of the loss, 2%, or a loss, 0.01")

    def record(self, steps: int) -> dict[str, Any]:
        """What decides the runs, for the folder that they are kept in; more seeds may be asked for later."""
        return {
            "ranks": list(self.ranks),
            "steps": steps,
            "fraction": self.fraction,
            "factors": list(self.factors),
        }


def check_parameters(ranks: Sequence[int], parameters: Sequence[int]) -> None:
    """Refuse ranks that cost the same, since no module has room for more.

    Raises:
        BudgetError: names them.

    """
    for (low, one), (high, other) in zip(
        zip(ranks, parameters, strict=True), zip(ranks[1:], parameters[1:], strict=False), strict=False
    ):
        if one >= other:
            raise BudgetError(f"rank {high} costs no more than rank {low} on these modules; leave it out of the ranks")
