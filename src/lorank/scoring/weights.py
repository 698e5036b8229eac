"""Weights of a layer as numbers, whatever form the layer holds them in."""

from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorank.errors import ScoresError
from lorank.models.quantization import packed_for_inference

PACKED = (
    "bitsandbytes has packed the 4-bit weights for inference on this processor (AVX512-BF16), as it does in the first forward "
    "pass in eval mode: they take no gradients and cannot be read; load the model again, and score it before anything else"
)


def weight_of(module: nn.Module) -> torch.Tensor:
    """Weights `(d_out, d_in)` of a linear layer, dequantised.

    Raises:
        ScoresError: they are offloaded, or packed in a form that cannot be unpacked.

    """
    if module.weight.device.type == "meta":
        raise ScoresError(
            f"{type(module).__name__} has its weights elsewhere (offloaded); load the model whole to score it"
        )
    if packed_for_inference(module):
        raise ScoresError(PACKED)
    held: Any = module.weight
    weight = held.detach().full_tensor() if hasattr(held, "full_tensor") else held  # sharded, or not
    if (state := getattr(module, "quant_state", None)) is not None and getattr(held, "quant_state", None) is None:
        # FSDP has made it a plain tensor, by which PEFT does not know that it is packed.
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.detach(), state)
    elif weight is held:
        weight = dequantize_module_weight(module).detach()
    # On the CPU PEFT leaves a copy of an 8-bit weight that has lost its scales, with which the layer cannot run.
    module.weight = held
    if weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise ScoresError(
            f"{type(module).__name__} holds its weights as {weight.dtype}, which cannot be read as numbers; load the model "
            "unquantised or in 4 or 8 bits by bitsandbytes, or use a score that does not look at weights"
        )
    return weight.T if isinstance(module, Conv1D) else weight
