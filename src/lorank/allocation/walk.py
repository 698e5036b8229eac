"""Blocks of units of rank in order, taken one after the other while they fit: what every rule of allocation ends with."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lorank.module_names import natural_order

# What a block of each module costs, `(modules,)`, and a budget; see `charge`.
Charge = tuple[np.ndarray, float]
_EXACT = 2**53  # whole numbers up to this are exact in float64


def charge(costs: Sequence[float], budget: float) -> Charge:
    """Costs of a block of each module, none below zero, as numbers in which all that a budget can leave is exact.

    Where costs and budget are whole numbers float64 is, up to 2^53; above that the array holds Python's own whole numbers.
    Where they are not, sums are rounded as those of a loop are.
    """
    huge = isinstance(budget, int) and abs(budget) >= _EXACT
    return np.array(costs, dtype=object if huge else np.float64), budget


def taken(modules: np.ndarray, charged: Charge, *, fill: bool = True) -> tuple[np.ndarray, Any]:
    """Which blocks a walk from the first to the last takes, each whenever it fits into what is left of the budget.

    The same as a loop over the blocks with `left -= cost`, to the last bit: differences are taken in that order. Blocks up
    to the first that does not fit are found at once; what no longer fits then is dropped, and the walk goes on behind. Each
    round drops at least one of the different costs, and there are few of these.

    Args:
        modules: `(blocks,)`, the module that each block is of, the most important block first.
        charged: what a block of each module costs, and the budget.
        fill: go on behind a block that the budget does not pay for; False stops there.

    Returns:
        Positions of the blocks taken, ascending, and what is left of the budget.

    """
    costs = charged[0][modules]
    left: Any = charged[1]
    waiting, found = np.arange(len(modules)), [np.zeros(0, dtype=np.intp)]
    while len(waiting):
        after = _sums(left, costs[waiting])
        fitting = int((after[1:] >= 0).sum())  # sums only fall, so the blocks that fit stand at the front
        found.append(waiting[:fitting])
        left = after[fitting]
        if not fill:
            break
        waiting = waiting[fitting:]
        waiting = waiting[costs[waiting] <= left]
    return np.concatenate(found), left


def _sums(budget: Any, costs: np.ndarray) -> np.ndarray:
    """What is left of a budget before the first block, after it, after the second, ..."""
    start = np.array([budget], dtype=costs.dtype)
    return np.asarray(np.subtract.accumulate(np.concatenate([start, costs])))


@lru_cache(maxsize=8)
def places_by_name(names: tuple[str, ...]) -> np.ndarray:
    """The place of each module in the order by name, `layer.2` before `layer.10`: `(modules,)`, from 0."""
    keys = [(natural_order(name), name) for name in names]
    places = np.empty(len(names), dtype=np.int64)
    places[sorted(range(len(names)), key=keys.__getitem__)] = np.arange(len(names))
    places.flags.writeable = False  # it is kept
    return places
