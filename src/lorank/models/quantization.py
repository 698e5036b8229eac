"""A base model in 4 or 8 bit, by bitsandbytes as transformers drives it.

PEFT's `prepare_model_for_kbit_training` is not called. `get_peft_model` freezes the base model too, and Trainer sets up gradient
checkpointing. What is left of it turns embeddings, norms and the output layer into fp32, by which a 4-bit base with a large
vocabulary grows well beyond its size. What trains, adapters and heads, is fp32 without it.
"""

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from lorank.errors import AdapterError, RecipeError
from lorank.models.base_dtype import DTYPES, dtype_of_checkpoint
from lorank.models.pretrained import Pretrained

# bitsandbytes' mark of a 4-bit layer that it will pack for inference on this processor.
PACKS_ON_CPU = "support_avx512bf16_for_cpu"


def quantization_config(base: Pretrained, compute: torch.dtype, unquantised: Sequence[str]) -> Any:
    """What `from_pretrained` takes: nf4 with double quantisation, or LLM.int8(); None where the base is not quantised.

    Args:
        base: which model.
        compute: dtype of its matrix products.
        unquantised: modules that stay as they are; none: what transformers leaves out (the output layer).

    """
    if base.quantization is None:
        return None
    skipped = {"llm_int8_skip_modules": list(unquantised) or None}  # of 4 bit too, in spite of the name
    if base.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, **skipped)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        **skipped,
    )


def loading_options(base: Pretrained, config: PreTrainedConfig) -> str:
    """Arguments of `from_pretrained` that load a base model as it was trained on, as Python writes them."""
    options = [] if base.revision is None else [f"revision={json.dumps(base.revision)}"]
    own, usual = base.dtype or "fp32", dtype_of_checkpoint(config)
    named = json.dumps(str(DTYPES[own]).removeprefix("torch."))
    if (own, usual) != ("fp32", "fp32") or base.quantization is not None:
        options.append(f"dtype={named}")
    if base.quantization == "8bit":
        options.append("quantization_config=BitsAndBytesConfig(load_in_8bit=True)")
    elif base.quantization == "4bit":
        options.append(
            'quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", '
            f"bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={named})"
        )
    return ", ".join(options)


def check_quantization(base: Pretrained, config: PreTrainedConfig) -> None:
    """Refuse a quantisation that cannot be, before any weights are loaded.

    Raises:
        RecipeError: bitsandbytes is not installed, or the checkpoint is quantised already.

    """
    if base.quantization is None:
        return
    if getattr(config, "quantization_config", None) is not None:
        raise RecipeError(
            f"model.quantization: the checkpoint {base.name!r} is quantised already and is loaded as it is; leave it out"
        )
    try:
        version("bitsandbytes")
    except PackageNotFoundError:
        raise RecipeError(
            f"model.quantization: {base.quantization} needs bitsandbytes, which is not installed; pip install bitsandbytes"
        ) from None


def check_full_training(base: Pretrained) -> None:
    """Refuse to train every weight of a quantised model.

    Raises:
        RecipeError: it is quantised.

    """
    if base.quantization is not None:
        raise RecipeError(
            f"full fine-tuning trains every weight, which a base in {base.quantization} does not have; leave full out, or "
            "model.quantization"
        )


def packed_for_inference(module: nn.Module) -> bool:
    """Whether bitsandbytes has packed a 4-bit layer, see `keep_gradients`: no gradients, and weights that cannot be read."""
    return bool(getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False))


def keep_gradients(model: nn.Module) -> None:
    """Have 4-bit layers keep the form that takes gradients, on every processor.

    On one with AVX512-BF16, bitsandbytes packs the weights of a layer anew at its first forward pass in eval mode without
    gradients, for good. From then on no gradient passes through the layer, so an evaluation between two steps of training would
    leave the rest of it with wrong gradients.

    Raises:
        AdapterError: a layer is packed already.

    """
    for name, module in model.named_modules():
        if not hasattr(module, PACKS_ON_CPU):
            continue
        if packed_for_inference(module):
            raise AdapterError(
                f"bitsandbytes has packed the 4-bit weights of {name!r} for inference on this processor (AVX512-BF16), as in "
                "a first forward pass in eval mode, and no gradient passes through them; load the model again"
            )
        if getattr(module, PACKS_ON_CPU):
            setattr(module, PACKS_ON_CPU, False)
