"""How a budget shrinks while adapters train, and at which steps it is cut."""

from dataclasses import dataclass
from typing import Literal

from lorank.errors import AllocationError

Curve = Literal["cubic", "linear", "one-shot"]
_POWERS = {"cubic": 3, "linear": 1}


def budget_at(
    step: int, *, start: float, final: float, first_step: int, last_step: int, curve: Curve = "cubic"
) -> float:
    """Budget at `step`: `start` until `first_step`, declining to `final` at `last_step`, and `final` from there on.

    `"cubic"` is AdaLoRA's eq. 14, `b(t) = b_T + (b_0 - b_T) (1 - (t - t_i) / (t_l - t_i))^3` with `first_step = t_i` and
    `last_step = t_l = T - t_f`; the exponent's argument is that of AdaLoRA's code: the printed one neither starts at
    `b_0` nor ends at `b_T`. `"linear"` has exponent 1; `"one-shot"` stays at `start` until `last_step`.
    """
    if step >= last_step:
        return final
    if step <= first_step or curve == "one-shot":
        return start
    left = 1 - (step - first_step) / (last_step - first_step)
    return final + (start - final) * left ** _POWERS[curve]


@dataclass(frozen=True)
class CutSchedule:
    """The optimizer steps, counted from 1, at which triplets are cut.

    Attributes:
        first: t_i: cuts come after this step.
        last: T - t_f: the last cut, after which ranks stand.
        interval: between them, every step that is a multiple of this.

    """

    first: int
    last: int
    interval: int

    @classmethod
    def of_run(cls, total: int, begin: int | float, end: int | float, interval: int | float) -> "CutSchedule":
        """Turn shares of a run of `total` steps (floats) or steps (whole numbers) into steps.

        Raises:
            AllocationError: no room for a cut between `begin` and `end`, or an end behind the run's.

        """
        first, last = _steps(begin, total), min(_steps(end, total), total) if isinstance(end, float) else end
        if last > total:
            raise AllocationError(f"end is step {last}, but the run has {total} steps; lower it, or give a share")
        if not 0 <= first < last:
            raise AllocationError(
                f"begin {begin} is step {first} and end {end} is step {last} of {total}, which leaves no "
                "room to prune in; begin must come first (1 is a step, 1.0 the whole run)"
            )
        return cls(first, last, max(1, _steps(interval, total)))

    def is_due(self, step: int) -> bool:
        """Whether a cut falls at `step`. From the last step on it does: a last cut that was missed is made up for."""
        return step >= self.last or (step > self.first and step % self.interval == 0)


def _steps(value: int | float, total: int) -> int:
    return value if isinstance(value, int) else round(value * total)
