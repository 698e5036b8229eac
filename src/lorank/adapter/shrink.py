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

    The parameters stay the same objects, so optimizer, gradient hooks and every view of the adapter stay valid; their
    gradients are dropped. A triplet whose λ is already zero leaves no trace: outputs are the same before and after.

    Args:
        adapter: is changed in place.
        kept: module name -> indices of the triplets to keep; rank 0 is legal.
        optimizer: whose state of these parameters is sliced alike: every state tensor of the parameter's own shape
            (Adam's moments) is; single numbers stay; state of any other shape starts anew, with a warning.

    """
    inner = optimizer
    while hasattr(inner, "optimizer"):  # accelerate's wrapper
        inner = inner.optimizer
    for name, layer in zip(adapter.names, adapter.layers, strict=True):
        values, q, p = layer.factors_of(adapter.adapter_name)
        index = kept[name].to(values.device)
        if len(index) == len(values):
            continue
        for parameter, dim in ((values, 0), (q, 0), (p, 1)):
            shape = parameter.shape
            parameter.data = parameter.data.index_select(dim, index)
            parameter.grad = None
            if inner is not None and parameter in inner.state:
                _slice_state(inner.state, parameter, shape, dim, index)
        layer.set_rank(adapter.adapter_name, len(index))


def _slice_state(state: Any, parameter: nn.Parameter, shape: torch.Size, dim: int, index: torch.Tensor) -> None:
    own = state[parameter]
    for key, value in own.items():
        if isinstance(value, torch.Tensor) and value.shape == shape:
            own[key] = value.index_select(dim, index.to(value.device))
        elif isinstance(value, torch.Tensor) and value.numel() > 1:
            warnings.warn(
                f"the optimizer keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape {tuple(shape)}, "
                "which cannot be cut along; its state of this parameter starts anew. AdamW carries its state through",
                LorankWarning,
                stacklevel=3,
            )
            state.pop(parameter)
            return
