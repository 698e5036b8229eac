"""Bytes of a base model in each dtype, quantised ones among them, from its names and shapes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from accelerate.utils import compute_module_sizes
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from lorank.models.base_dtype import DTYPES
from lorank.module_names import has_part

# bitsandbytes' layout: weights in a block share an absolute maximum; with double quantisation 256 of these share another.
_BLOCK, _NESTED_BLOCK, _NF4_CODES, _NESTED_CODES = 64, 256, 16, 256


@dataclass(frozen=True)
class QuantisedBase:
    """A base model quantised by bitsandbytes, as transformers does it while loading.

    Attributes:
        bytes: of all weights and buffers.
        overhead: of them, what tells how to read the packed weights: absolute maxima and codes.
        layers: full names of the layers that are quantised.
        kept: full names of linear layers that are not: output embeddings, what is tied, the last module.
        quantised_weights: number of weights that are packed.

    """

    bytes: int
    overhead: int
    layers: tuple[str, ...]
    kept: tuple[str, ...]
    quantised_weights: int


def in_dtype(model: nn.Module, dtype: str) -> None:
    """Put the parameters of a model on the meta device into a dtype, in place; buffers stay, as they do while loading."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(DTYPES[dtype])


def base_bytes(model: nn.Module, dtype: str) -> int:
    """Bytes of all parameters and buffers of a model loaded in a dtype; a tied weight counts once.

    Buffers stay as they are, and so do weights that the architecture keeps in fp32 (T5's `wo`, in fp16).

    Args:
        model: in fp32, on any device, the meta device too.
        dtype: fp32, bf16 or fp16.

    """
    return int(module_bytes(model, dtype)[""])


def module_bytes(model: nn.Module, dtype: str) -> Mapping[str, int]:
    """The same for every module by its full name, by accelerate's count."""
    special = {name: buffer.dtype for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    special |= {name: torch.float32 for name, _ in model.named_parameters() if _stays_fp32(model, name, dtype)}
    return dict(compute_module_sizes(model, dtype=DTYPES[dtype], special_dtypes=special))


def _stays_fp32(model: nn.Module, name: str, dtype: str) -> bool:
    always = getattr(model, "_keep_in_fp32_modules_strict", None) or ()
    in_half = (getattr(model, "_keep_in_fp32_modules", None) or ()) if dtype == "fp16" else ()
    return any(has_part(name, part) for part in (*always, *in_half))


def quantised(model: nn.Module, bits: str, dtype: str) -> QuantisedBase:
    """Bytes of a model loaded in 4 bits (nf4 with double quantisation) or in 8 bits (LLM.int8).

    A weight of n numbers in 4 bits takes `⌈n/2⌉` bytes, and `b = ⌈n/64⌉` absolute maxima of 8 bits, which in turn have
    `⌈b/256⌉` of 32 bits; 64 bytes of codes, 1 KiB of codes of the maxima and an offset of 4 bytes for each layer. In 8 bits
    it takes n bytes and 4 bytes for each output. Every other weight has `dtype`. Experts that are one tensor for all of them
    are no linear layers, and are not quantised.

    Args:
        model: in fp32, on any device, the meta device too.
        bits: "4bit" or "8bit".
        dtype: of what is not quantised.

    """
    skipped = [*get_keys_to_not_convert(model), *(getattr(model, "_keep_in_fp32_modules", None) or ())]
    layers, kept, packed, overhead, weights = list[str](), list[str](), 0, 0, 0
    for name, module in model.named_modules():
        if type(module) is not nn.Linear and not isinstance(module, Conv1D):
            continue
        if not should_convert_module(name, skipped):
            kept.append(name)
            continue
        layers.append(name)
        numbers = module.weight.numel()
        of_layer = packed_bytes(numbers, module.nf if isinstance(module, Conv1D) else module.out_features, bits)
        packed, overhead, weights = packed + of_layer[0], overhead + of_layer[1], weights + numbers
    sizes = module_bytes(model, dtype)
    replaced = sum(sizes[f"{name}.weight"] for name in layers)
    whole = sizes[""] - replaced + packed + overhead
    return QuantisedBase(int(whole), overhead, tuple(layers), tuple(kept), weights)


def packed_bytes(numbers: int, outputs: int, bits: str) -> tuple[int, int]:
    """Bytes of the packed weights of a layer, and of what tells how to read them."""
    if bits == "8bit":
        return numbers, 4 * outputs
    blocks = math.ceil(numbers / _BLOCK)
    maxima = blocks + 4 * math.ceil(blocks / _NESTED_BLOCK) + 4
    return math.ceil(numbers / 2), maxima + 4 * (_NF4_CODES + _NESTED_CODES)
