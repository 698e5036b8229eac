"""Cutting triplets away for good: tensors and optimizer moments become smaller by slicing, and training goes on."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lorank.adapter.triplet import TripletAdapter
from lorank.errors import LorankWarning


@torch.no_grad()
def shrink(adapter: TripletAdapter, kept: Mapping[str, torch.Tensor], optimizer: Any = None) -> None:
    """Keep the triplets `kept[name]` (indices `(r_new,)`, ascending) of every module and forget the others.

    The smaller tensors are new parameters, which take the places of the old ones in the model, in `adapter` and in the
    optimizer: a graph of the last step that somebody still holds remembers the shapes of the old ones. Gradients are
    dropped. A triplet whose λ is already zero leaves no trace: outputs are the same before and after.

    Args:
        adapter: is changed in place.
        kept: module name -> indices of the triplets to keep; rank 0 is legal.
        optimizer: whose state of these parameters is sliced alike: every state tensor of the parameter's own shape
            (Adam's moments) is; single numbers stay; state of any other shape starts anew, with a warning.

    """
    inner = optimizer
    while hasattr(inner, "optimizer"):  # accelerate's wrapper
        inner = inner.optimizer
    new: dict[nn.Parameter, nn.Parameter] = {}
    lost: set[str] = set()
    for name, layer in zip(adapter.names, adapter.layers, strict=True):
        old = layer.factors_of(adapter.adapter_name)
        index = kept[name].to(old[0].device)
        if len(index) == len(old[0]):
            continue
        smaller = []
        for parameter, dim in zip(old, (0, 0, 1), strict=True):
            part = nn.Parameter(parameter.data.index_select(dim, index), requires_grad=parameter.requires_grad)
            new[parameter] = part
            smaller.append(part)
            if inner is not None and parameter in inner.state:
                state = inner.state.pop(parameter)
                lost |= (odd := _slice_state(state, parameter.shape, dim, index))
                if not odd:
                    inner.state[part] = state
        layer.replace_factors(adapter.adapter_name, *smaller)
    for group in () if inner is None else inner.param_groups:
        group["params"] = [new.get(parameter, parameter) for parameter in group["params"]]
    adapter.refresh()
    if lost:
        warnings.warn(
            f"{type(inner).__name__} keeps {', '.join(sorted(lost))} in another shape than its parameters, which cannot be cut "
            "along; its state of the parameters that became smaller starts anew. AdamW carries its state through",
            LorankWarning,
            stacklevel=2,
        )


def _slice_state(state: dict[str, Any], shape: torch.Size, dim: int, index: torch.Tensor) -> set[str]:
    """Slice what has the parameter's shape; the names of what has another."""
    odd = set()
    for key, value in state.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            state[key] = value.index_select(dim, index.to(value.device))
        elif isinstance(value, torch.Tensor) and value.numel() > 1:
            odd.add(key)
    return odd
