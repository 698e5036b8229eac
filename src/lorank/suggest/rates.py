"""Learning rates to start with: several are tried for a few steps each, and judged on held-out training examples."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorank.errors import TrainingError

_MORE = 2  # rates that are tried beyond those that were asked for, where the best one is the first or the last


@dataclass(frozen=True)
class TriedRates:
    """Rates that were tried, and which is the best.

    Attributes:
        rates: ascending.
        losses: mean loss of each; NaN where the training diverged.

    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def best(self) -> float:
        """The rate of the lowest loss.

        Raises:
            TrainingError: every training diverged.

        """
        finite = [(loss, rate) for loss, rate in zip(self.losses, self.rates, strict=True) if math.isfinite(loss)]
        if not finite:
            raise TrainingError(
                f"every learning rate from {self.rates[0]:.2g} to {self.rates[-1]:.2g} gave a loss that is not finite; lower "
                "that of the recipe (train.learning_rate, or its own in baselines.lora), the rates are factors of it"
            )
        return min(finite)[1]

    @property
    def at_an_end(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried."""
        return self.best in (self.rates[0], self.rates[-1])

    def record(self) -> dict[str, object]:
        """The same for a JSON file."""
        tried = [
            {"rate": rate, "loss": loss if math.isfinite(loss) else None}
            for rate, loss in zip(self.rates, self.losses, strict=True)
        ]
        return {"chosen": self.best, "at_an_end": self.at_an_end, "tried": tried}


def search_rates(rates: Sequence[float], loss_at: Callable[[float], float]) -> TriedRates:
    """Try rates one after the other; where the best is the first or the last, up to two more beyond it.

    Args:
        rates: ascending, two or more, in one ratio.
        loss_at: trains at a rate and returns the loss; NaN or infinite where it diverged.

    """
    tried, ratio = {rate: loss_at(rate) for rate in rates}, rates[1] / rates[0]

    def sorted_so_far() -> TriedRates:
        ascending = sorted(tried)
        return TriedRates(tuple(ascending), tuple(tried[rate] for rate in ascending))

    for _ in range(_MORE):
        so_far = sorted_so_far()
        if not any(math.isfinite(loss) for loss in so_far.losses) or so_far.best == so_far.rates[0]:
            beyond = so_far.rates[0] / ratio
        elif so_far.best == so_far.rates[-1]:
            beyond = so_far.rates[-1] * ratio
        else:
            break
        tried[beyond] = loss_at(beyond)
    return sorted_so_far()


def rate_between(rank: int, lowest: tuple[int, float], highest: tuple[int, float]) -> float:
    """The rate of a rank between two ranks whose rates are known: straight in the logarithms of both.

    Args:
        rank: whose rate is asked for.
        lowest: a rank and its rate.
        highest: the same of a higher rank.

    """
    (low, low_rate), (high, high_rate) = lowest, highest
    share = math.log(rank / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(low_rate) + share * math.log(high_rate))
