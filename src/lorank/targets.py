"""Which linear layers can be adapted, what one unit of rank of each costs, and where each stands in the model.

The only place in lorank that reads a dotted module name. torch is loaded when a model is looked at, not before: allocating
from a file of scores needs names alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from lorank.errors import TargetError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Place:
    """Where a module stands: which stack of blocks, which block of it, and its short name inside the block.

    `stack` is the dotted name of the list of blocks (`"bert.encoder.layer"`), `layer` the index in it, or None for
    a module outside of any list.
    """

    stack: str
    layer: int | None
    projection: str


@dataclass(frozen=True)
class Target:
    """A linear layer that can carry an adapter, `W: (d_out, d_in)`."""

    name: str
    d_in: int
    d_out: int

    @property
    def unit_cost(self) -> int:
        """Adapter parameters of one unit of rank: a row of A and a column of B."""
        return self.d_in + self.d_out


def unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, inside of torch.compile, DataParallel, DistributedDataParallel, FSDP or DeepSpeed's engine."""
    from accelerate.utils import extract_model_from_parallel

    # One wrapper may hold another, in either order.
    while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
        model = inner
    return model


def _linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """`(d_in, d_out)` of a linear layer (also of quantised subclasses, and of GPT-2's Conv1D), else None."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return None


def find_targets(model: nn.Module, select: str | Sequence[str] | None = None) -> tuple[Target, ...]:
    """List the linear layers to adapt, in the model's order.

    Args:
        model: a transformers model; its weights may be on the meta device.
        select: None takes every linear layer inside the transformer blocks (the members of a module list of the base
            model: heads, poolers and embeddings are left out). A list takes, as PEFT does, the modules whose full
            name is an entry or ends with `.entry`; a text is a regular expression that must match the full name.

    Raises:
        TargetError: nothing matches; the message names the nearest modules.

    """
    from torch import nn

    linears = {name: shape for name, module in model.named_modules() if (shape := _linear_shape(module)) and name}
    if select is None:
        prefix = getattr(model, "base_model_prefix", "")
        inside = f"{prefix}." if prefix and hasattr(model, prefix) else ""
        lists = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
        chosen = [name for name in linears if name.startswith(inside) and name.startswith(lists)]
        problem = f"{type(model).__name__} has no linear layer inside a list of blocks"
    elif isinstance(select, str):
        try:
            pattern = re.compile(select)
        except re.error as error:
            raise TargetError(f"targets {select!r} is not a regular expression: {error}") from None
        chosen = [name for name in linears if pattern.fullmatch(name)]
        problem = f"targets {select!r} matches the full name of no linear layer"
    else:
        ends = {entry: [name for name in linears if name == entry or name.endswith(f".{entry}")] for entry in select}
        missing = [entry for entry, names in ends.items() if not names]
        wanted = {name for names in ends.values() for name in names}
        chosen = [] if missing else [name for name in linears if name in wanted]
        problem = f"targets {missing or list(select)} match no linear layer"
    if not chosen:
        known = sorted(
            {place.projection for place in places(linears).values()} | {n.rpartition(".")[2] for n in linears}
        )
        near = (
            []
            if select is None
            else get_close_matches(select if isinstance(select, str) else " ".join(select), known, 5, 0.3)
        )
        raise TargetError(
            f"{problem}; linear layers here are named {', '.join(near or known[:12]) or 'nothing at all'}"
        )
    return tuple(Target(name, *linears[name]) for name in chosen)


def unit_costs(targets: Iterable[Target]) -> dict[str, int]:
    """Module name -> adapter parameters of one unit of rank."""
    return {target.name: target.unit_cost for target in targets}


def first_difference(costs: Mapping[str, int], model: nn.Module, provenance: Mapping[str, Any]) -> str | None:
    """How the modules of scores or of a plan differ from a model's, in words; None if they are the same.

    Where the provenance says by which `targets` modules were chosen, the model's are chosen alike, so that a model with more
    layers is another model; else the modules need only be among the model's.
    """
    try:
        there = unit_costs(find_targets(model, provenance.get("targets", r".*")))
    except TargetError:
        there = {}
    for name in (*costs, *(there if "targets" in provenance else ())):
        if costs.get(name) != there.get(name):
            here, other = (f"of d_in + d_out = {c[name]:,}" if name in c else "missing" for c in (costs, there))
            return f"{name!r} is {here} in the file and {other} in the model"
    return None


def natural_order(name: str) -> tuple[tuple[int, str | int], ...]:
    """Sort key under which `layer.2` comes before `layer.10`."""
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in name.split("."))


def leaf_of(name: str) -> str:
    """The last part of a module's name, by which serving engines know a projection: `"q_proj"`."""
    return name.rpartition(".")[2]


def expert_of(name: str) -> tuple[str, int] | None:
    """A module of one routed expert: its name with `*` for the expert's number, and that number; None for any other."""
    found = re.search(r"\.experts\.(\d+)\.", name)
    return (f"{name[: found.start(1)]}*{name[found.end(1) :]}", int(found[1])) if found else None


def sibling(name: str, leaf: str) -> str:
    """The module beside this one, in the same parent, that is called `leaf`."""
    parent = name.rpartition(".")[0]
    return f"{parent}.{leaf}" if parent else leaf


def places(names: Iterable[str]) -> dict[str, Place]:
    """Place of each module, from the names alone; within a block every short name is unique.

    The block is the first number in the dotted name. The short name is the shortest tail of the rest that no other
    module of the same stack shares, after a trailing `dense` (which says nothing) is dropped.

    Example:
        >>> placed = places(["bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.0.output.dense"])
        >>> [place.projection for place in placed.values()]
        ['attention.output', 'output']

    """
    split: dict[str, tuple[str, int | None, tuple[str, ...]]] = {}
    for name in names:
        parts = name.split(".")
        index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
        stack, layer, inner = (
            (".".join(parts[:-1]), None, parts[-1:])
            if index is None
            else (".".join(parts[:index]), int(parts[index]), parts[index + 1 :])
        )
        if len(inner) > 1 and inner[-1] == "dense":
            inner = inner[:-1]
        split[name] = (stack, layer, tuple(inner))
    inners = {(stack, inner) for stack, _, inner in split.values()}
    short = {(stack, inner): _shortest_tail(inner, {i for s, i in inners if s == stack}) for stack, inner in inners}
    return {name: Place(stack, layer, short[stack, inner]) for name, (stack, layer, inner) in split.items()}


def _shortest_tail(inner: tuple[str, ...], siblings: set[tuple[str, ...]]) -> str:
    for length in range(1, len(inner)):
        tail = inner[-length:]
        if sum(sibling[-length:] == tail for sibling in siblings) == 1:
            return ".".join(tail)
    return ".".join(inner)
