"""Scores are kept in fp32, whatever the model computes in."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from lorank.models.quantization import PACKS_ON_CPU


def full_precision(tensor: torch.Tensor) -> torch.autocast:
    """No autocast while open: what is summed up is not rounded to what the model computes in."""
    return torch.autocast(tensor.device.type, enabled=False)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, in fp32 unless they are finer already."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def exact_4_bit(model: nn.Module) -> Iterator[None]:
    """4-bit layers multiply by the weights that they stand for, on every processor.

    On one with AVX512-BF16, bitsandbytes packs the weights of a layer anew at its first forward pass in eval mode, for good,
    and from then on multiplies in bf16 without gradients.
    """
    layers = [module for module in model.modules() if getattr(module, PACKS_ON_CPU, False)]
    try:
        for layer in layers:
            setattr(layer, PACKS_ON_CPU, False)
        yield
    finally:
        for layer in layers:
            setattr(layer, PACKS_ON_CPU, True)
