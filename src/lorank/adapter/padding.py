"""Zeros that an export has added to make all ranks equal: fine to serve, dead to train."""

import torch
from peft.tuners.lora import LoraLayer

from lorank.adapter.triplet import TripletLinear
from lorank.errors import AdapterError


@torch.no_grad()
def refuse_padding(layers: dict[str, LoraLayer], adapter_name: str) -> None:
    """Refuse to train an adapter with units whose row of A and column of B are both zero.

    The gradient of either is a product with the other, so such a unit stays zero for ever, and the rank that the config says
    is not there.

    Raises:
        AdapterError: names how many units are padding, and where the trainable adapter is.

    """
    padded = total = 0
    for layer in layers.values():
        if isinstance(layer, TripletLinear):
            continue  # a unit of triplets lives by its λ
        a, b = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        padded += int((~(a.any(1) | b.any(0))).sum())
        total += len(a)
    if padded:
        raise AdapterError(
            f"{padded} of {total} units of rank of adapter {adapter_name!r} are padding: rows of A and columns of B are zero, "
            "so they have no gradient and would never train; train the adapter that was exported, or make a compact one of this: "
            "lorank export ADAPTER OUT --for peft"
        )
