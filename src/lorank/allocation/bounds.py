"""Bounded plans: no module's rank is far from the mean rank that a budget buys."""

import math
from collections.abc import Mapping
from fractions import Fraction
from numbers import Real
from typing import Any

from lorank.errors import AllocationError


def rank_bounds(mean: Fraction, within: float, multiple_of: int = 1) -> tuple[int, int]:
    """Lowest and highest rank of a module: the multiples of `multiple_of` between `mean / within` and `mean · within`.

    One block of `multiple_of` units is the step of a rank. Where the lower end is half a block or less, it rounds to rank 0,
    and a module may get no adapter; between half a block and a block the lowest rank is a block. The highest rank is a block
    at the least.

    Args:
        mean: the rank that the budget buys in every module: budget / sum of the unit costs.
        within: factor, above 1.
        multiple_of: units in a block.

    Raises:
        AllocationError: `within` is not above 1, or no rank lies between the lower end and the mean, so that the budget cannot
            pay for the lowest rank everywhere.

    """
    if isinstance(within, bool) or not isinstance(within, Real) or not 1 < within < math.inf:
        raise AllocationError(f"within is {within!r}; allowed: numbers above 1 (2.0: half to twice the mean rank)")
    factor, blocks = Fraction(str(within)), mean / multiple_of
    lower, upper = blocks / factor, math.floor(blocks * factor)
    lowest = 0 if lower <= Fraction(1, 2) else math.ceil(lower)
    if lowest > blocks:
        # The factor at which the next lower rank is in reach; rank 0 is from half a block on.
        least = float(blocks / (math.floor(blocks) or Fraction(1, 2)))
        steps = f" in steps of multiple_of = {multiple_of}" if multiple_of > 1 else ""
        raise AllocationError(
            f"within is {within:g}, but no rank lies between the mean rank {float(mean):.4g} that the budget buys and "
            f"{float(mean / factor):.4g}{steps}; raise within to {math.ceil(100 * least) / 100:g} or more, or change the budget"
        )
    return lowest * multiple_of, max(1, upper) * multiple_of


def bounded_limits(limits: Mapping[str, Any], budget: float, price: Mapping[str, float]) -> dict[str, Any]:
    """The limits of `lorank.allocate` with `within` put into `min_rank` and `max_rank`, and left out.

    Args:
        limits: by name; `within` may be None or missing.
        budget: parameters, or units of rank.
        price: module name -> what a unit of rank takes from it.

    Raises:
        AllocationError: as `rank_bounds`, or bounds that contradict `min_rank` or `max_rank`.

    """
    found = {key: value for key, value in limits.items() if key != "within"}
    if (within := limits.get("within")) is None:
        return found
    mean = Fraction(budget) / sum(map(Fraction, price.values()))
    low, high = rank_bounds(mean, within, found.get("multiple_of", 1))
    most, least = found.get("max_rank"), found["min_rank"]
    for key, value, wrong in (("max_rank", most, most is not None and most < low), ("min_rank", least, least > high)):
        if wrong:
            raise AllocationError(
                f"{key} is {value}, but within {within:g} of the mean rank {float(mean):.4g} allows ranks from {low} to {high}; "
                f"leave {key} out, or raise within"
            )
    return {**found, "min_rank": max(least, low), "max_rank": high if most is None else min(most, high)}
