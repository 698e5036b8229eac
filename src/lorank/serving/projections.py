"""The modules of an adapter by projection (query, value, ...): some engines need a projection in every layer or in none."""

from collections.abc import Mapping
from dataclasses import dataclass

from lorank.module_names import leaf_of, places
from lorank.serving.adapter_files import AdapterFiles
from lorank.serving.base_layers import BaseLayers


@dataclass(frozen=True)
class Projection:
    """One kind of layer in one stack of blocks.

    Attributes:
        stack: the stack of blocks.
        leaf: last part of the modules' names, "q_proj".
        held: layer -> full name of the module that the adapter holds.
        everywhere: layer -> full name of the module, for all layers of the base model that have it; None where the base model
            is not known.

    """

    stack: str
    leaf: str
    held: Mapping[int, str]
    everywhere: Mapping[int, str] | None


def projections_of(adapter: AdapterFiles, base: BaseLayers | None) -> list[Projection]:
    """Projections that the adapter holds for at least one layer; modules outside of any stack belong to none."""
    # Names of the base model, where it is known: places are told apart within the names that are given.
    placed = places(base.shapes if base is not None else adapter.pairs)
    grouped: dict[tuple[str, str], dict[int, str]] = {}
    for module, place in placed.items():
        if place.layer is not None:
            grouped.setdefault((place.stack, place.projection), {})[place.layer] = module
    found = []
    for (stack, _), modules in grouped.items():
        held = {layer: module for layer, module in modules.items() if module in adapter.pairs}
        if held:
            leaf = leaf_of(next(iter(held.values())))
            found.append(Projection(stack, leaf, held, modules if base is not None else None))
    return found
