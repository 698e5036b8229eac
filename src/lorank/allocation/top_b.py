"""The cut: keep the most important units of rank that a parameter budget pays for."""

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from lorank.allocation.walk import charge, places_by_name, taken
from lorank.errors import LorankWarning
from lorank.module_names import places
from lorank.scores import ImportanceScores

RankBy = Literal["score", "score-per-parameter"]
Scope = Literal["global", "layer"]
EQUAL = "equal_scores"  # in the provenance of scores that are meant to be equal


def top_b_ranks(
    scores: ImportanceScores,
    budget: int,
    *,
    price: Mapping[str, int] | None = None,
    max_rank: int | None = None,
    min_rank: int = 0,
    multiple_of: int = 1,
    rank_by: RankBy = "score",
    scope: Scope = "global",
) -> dict[str, int]:
    """Ranks of the most important units that the budget pays for; the same as `top_b_ranks_plain`, in a few milliseconds.

    `price` is what a unit takes from the budget: its parameters, or 1 where units are counted.
    """
    names, costs = tuple(scores.scores), [(price or scores.unit_costs)[name] for name in scores.scores]
    worth_by = [scores.unit_costs[name] for name in names]
    module, start = _blocks(scores.scores, worth_by, max_rank, min_rank, multiple_of, rank_by)
    floors = [floor_of(min_rank, len(values), multiple_of) for values in scores.scores.values()]
    left = budget - sum(map(operator.mul, floors, costs))
    charged = charge(of_block := [cost * multiple_of for cost in costs], left)
    ranks = np.array(floors)
    if scope == "layer":
        shares = _layers(names, module, of_block, left)
        firsts = np.concatenate([own[taken(own, (charged[0], share))[0]] for own, share in shares])
        ranks += multiple_of * np.bincount(firsts, minlength=len(names))
        left = budget - sum(map(operator.mul, ranks.tolist(), costs))
        # What a layer's own share already took is the best part of it, so the walk goes on behind it.
        module = module[start >= ranks[module]]
    ranks += multiple_of * np.bincount(module[taken(module, (charged[0], left))[0]], minlength=len(names))
    return dict(zip(names, ranks.tolist(), strict=True))


def _layers(
    names: tuple[str, ...], module: np.ndarray, costs: Sequence[int], budget: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of each transformer block, in order, and its share of the budget: that of its blocks in what all cost."""
    numbers: dict[tuple[str, int | None], int] = {}
    placed = places(names).values()
    layer_of = np.array([numbers.setdefault((place.stack, place.layer), len(numbers)) for place in placed])
    counts = np.bincount(module, minlength=len(names)).tolist()
    whole, of_layer = sum(map(operator.mul, counts, costs)), [0] * len(numbers)
    for layer, count, cost in zip(layer_of.tolist(), counts, costs, strict=True):
        of_layer[layer] += count * cost
    in_order = layer_of[module]
    together = np.argsort(in_order, kind="stable")
    ends = np.cumsum(np.bincount(in_order, minlength=len(numbers)))
    for own, cost in zip(np.split(module[together], ends[:-1]), of_layer, strict=True):
        yield own, int(budget * cost // whole) if whole else 0


def top_ranks(
    scores: Mapping[str, np.ndarray],
    costs: Mapping[str, int],
    budget: float,
    *,
    price: Mapping[str, float] | None = None,
    min_rank: int = 0,
    rank_by: RankBy = "score",
    fill: bool = True,
) -> dict[str, int]:
    """Ranks of one cut while training goes on: the walk of `allocate` over whatever costs the budget is counted in.

    Args:
        scores: module name -> scores of its units that are left.
        costs: module name -> parameters of a unit.
        budget: what the kept units may take.
        price: module name -> what a unit takes from the budget: its parameters (None), or 1 for a budget in ranks, or any
            weight above zero.
        min_rank: every module keeps at least this, or all that it has.
        rank_by: as `allocate`.
        fill: go on behind the first unit that does not fit, so that no unit more would fit; False stops there, as the
            published codes do, which drop the least important until the rest fits.

    """
    names, taken_by = tuple(scores), [(price or costs)[name] for name in scores]
    floors = {name: min(min_rank, len(values)) for name, values in scores.items()}
    left = budget - sum(rank * one for rank, one in zip(floors.values(), taken_by, strict=True))
    module, _ = _blocks(scores, [costs[name] for name in names], None, min_rank, 1, rank_by)
    more = np.bincount(module[taken(module, charge(taken_by, left), fill=fill)[0]], minlength=len(names)).tolist()
    return {name: rank + one for (name, rank), one in zip(floors.items(), more, strict=True)}


def best_units(scores: np.ndarray, rank: int) -> np.ndarray:
    """Positions of the `rank` best units of a module, ascending; of equal ones the lower."""
    return np.sort(np.argsort(-scores, kind="stable")[:rank])


def _blocks(
    scores: Mapping[str, np.ndarray],
    costs: Sequence[float],
    max_rank: int | None,
    min_rank: int,
    multiple_of: int,
    rank_by: RankBy,
) -> tuple[np.ndarray, np.ndarray]:
    """All blocks of `multiple_of` units above `min_rank`, most important first.

    Returns:
        Two arrays `(blocks,)`: the module of each block, by its position in `scores`, and the module's rank before the block.

    """
    values, price = list(scores.values()), np.array(costs, dtype=np.float64)
    lengths = np.array([len(each) for each in values])
    worths, modules, starts = [np.zeros(0)], [np.zeros(0, dtype=np.intp)], [np.zeros(0, dtype=np.intp)]
    for length in np.unique(lengths).tolist():
        top = length if max_rank is None else min(max_rank, length)
        count = max(0, (top - min_rank) // multiple_of)
        alike = np.flatnonzero(lengths == length)
        best_first = np.sort(np.array([values[k] for k in alike]), axis=1)[:, ::-1]
        blocks = best_first[:, min_rank : min_rank + count * multiple_of].reshape(len(alike), count, multiple_of)
        worths.append(np.ascontiguousarray(blocks).mean(axis=2).ravel())
        modules.append(np.repeat(alike, count))
        starts.append(np.tile(min_rank + multiple_of * np.arange(count), len(alike)))
    worth, module, start = np.concatenate(worths), np.concatenate(modules), np.concatenate(starts)
    if rank_by == "score-per-parameter":
        # A loss is no smaller for costing more.
        worth = np.where(worth > 0, worth / price[module], worth * price[module])
    # Equal worth: the lower unit of a module first, then the module that comes first by name.
    by_unit = np.argsort(start * len(values) + places_by_name(tuple(scores))[module], kind="stable")
    order = by_unit[np.argsort(-worth[by_unit], kind="stable")]
    return module[order], start[order]


def floor_of(min_rank: int, most: int, multiple_of: int = 1) -> int:
    """The least rank of a module that can have `most`: a module that cannot have `min_rank` gets all that it can."""
    return min(min_rank, most // multiple_of * multiple_of)


def uniform_scores(
    costs: Mapping[str, int], units: int | Mapping[str, int], provenance: Mapping[str, Any] | None = None
) -> ImportanceScores:
    """Equal scores: what uniform LoRA believes. `allocate` turns them into equal ranks, remainder from the first layer.

    `units` are those of every module, or of each.
    """
    of = dict.fromkeys(costs, units) if isinstance(units, int) else units
    return ImportanceScores(
        {name: np.ones(of[name]) for name in costs}, costs, None, {**(provenance or {}), EQUAL: True}
    )


def warn_if_equal(scores: Mapping[str, np.ndarray]) -> None:
    """Say so where every score of several modules is the same: the ranks are then decided by the order of the modules."""
    first = next((values[0] for values in scores.values() if len(values)), None)
    if len(scores) > 1 and first is not None and all((values == first).all() for values in scores.values()):
        warnings.warn(
            f"every score is equal ({first:g}), so the plan says nothing about the layers; look at what was scored, or use "
            "method lora for equal ranks",
            LorankWarning,
            stacklevel=3,
        )
