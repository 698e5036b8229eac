"""What an allocation did, in one or two sentences."""

from collections.abc import Iterable, Mapping

from lorank.module_names import places, stack_label
from lorank.plan import RankPlan

_MOST = 6  # groups of modules that are named


def allocation_lines(plan: RankPlan, initial: Mapping[str, int]) -> list[str]:
    """Budget, what is kept of the adapter that training began with, and which modules got none.

    Args:
        plan: what was decided.
        initial: rank of each module at the start.

    """
    adapted = [rank for rank in plan.ranks.values() if rank]
    before = sum(initial.get(name, 0) * cost for name, cost in plan.unit_costs.items())
    first = f"{plan.provenance.get('method', 'ranks')}, budget {plan.budget}: {plan.spending}; the adapter began with {before:,}"
    if not adapted:
        return [f"{first}; no module has an adapter"]
    ranks = f"rank {adapted[0]}" if len(set(adapted)) == 1 else f"ranks {min(adapted)} to {max(adapted)}"
    first += f"; {ranks} in {len(adapted)} of {len(plan.ranks)} modules"
    without = [name for name, rank in plan.ranks.items() if not rank]
    return [first, *([f"without an adapter: {module_groups(without, plan.ranks)}"] if without else [])]


def module_groups(names: Iterable[str], among: Iterable[str]) -> str:
    """Modules by projection and layer: `query (layers 0-2, 5), value (all layers)`; the first groups, and how many more.

    Args:
        names: of the modules.
        among: of all the modules of the model that could be adapted, which give each one its short name.

    """
    placed = places(among)
    stacks = {place.stack for place in placed.values()}
    every: dict[tuple[str, str], list[int | None]] = {}
    groups: dict[tuple[str, str], list[int | None]] = {}
    for place in placed.values():
        every.setdefault((place.stack, place.projection), []).append(place.layer)
    for name in names:
        groups.setdefault((placed[name].stack, placed[name].projection), []).append(placed[name].layer)
    said = []
    for (stack, projection), layers in groups.items():
        numbers = sorted({layer for layer in layers if layer is not None})
        where = [stack_label(stack)] if len(stacks) > 1 and stack_label(stack) else []
        if numbers and len(layers) == len(every[stack, projection]) > 1:
            where.append("all layers")
        elif numbers:
            where.append(f"layer{'s' if len(numbers) > 1 else ''} {_ranges(numbers)}")
        said.append(f"{projection} ({', '.join(where)})" if where else projection)
    more = len(said) - _MOST
    return ", ".join(said[:_MOST]) + (f", and {more} more kinds of modules" if more > 0 else "")


def _ranges(numbers: list[int]) -> str:
    """`0-2, 5` of 0, 1, 2, 5."""
    found: list[list[int]] = []
    for number in numbers:
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(f"{one}-{last}" if last > one else str(one) for one, last in found)
