"""A base model in 4 or 8 bit, by bitsandbytes as transformers drives it.

PEFT's `prepare_model_for_kbit_training` is not called. `get_peft_model` freezes the base model too, and Trainer sets up gradient
checkpointing. What is left of it turns embeddings, norms and the output layer into fp32, by which a 4-bit base with a large
vocabulary grows well beyond its size. What trains, adapters and heads, is fp32 without it.
"""

import dataclasses
import json
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate.utils import is_torch_version
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedConfig

from lorank.errors import AdapterError, LorankWarning, RecipeError, TrainingError
from lorank.models.base_dtype import DTYPES, dtype_of_checkpoint
from lorank.models.pretrained import Pretrained

# bitsandbytes' mark of a 4-bit layer that it will pack for inference on this processor.
PACKS_ON_CPU = "support_avx512bf16_for_cpu"

NOT_IN_8_BITS = (
    "FSDP cannot hold a base in 8 bits: sharded, its layers lose their scales, and whole, it cannot be saved"
)


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
        setattr(module, PACKS_ON_CPU, False)


def layers_in_8_bits(model: nn.Module) -> list[nn.Module]:
    """Layers of LLM.int8(), by their name: bitsandbytes need not be there."""
    return [module for module in model.modules() if type(module).__name__ == "Linear8bitLt"]


def hold_for_sharding(model: nn.Module, plugin: Any) -> list[nn.Parameter]:
    """Have FSDP2 gather 4-bit weights with the bits that it sharded. Call it before accelerate shards `model` by `plugin`.

    bitsandbytes packs two weights into a byte, and holds the bytes in a tensor of any dtype (`bnb_4bit_quant_storage`):

    - uint8, its default, is not sharded by accelerate;
    - bf16 and fp16 are changed on a GPU by the copy with which FSDP2 gathers, `torch._foreach_copy_`: all bit patterns that read
      as NaN become one (pytorch/pytorch issue 159333, bitsandbytes issue 1945);
    - all are changed by `param_dtype` of a mixed precision, which reads the bytes as numbers and rounds those.

    So the same bytes are held as fp32, and `param_dtype` is taken out of the plugin. The model then computes in the dtypes in
    which it computes without FSDP.

    Returns:
        What cannot be sharded, and has to be left whole on every process: integers, and packed weights of an odd size.

    Raises:
        TrainingError: torch is older than 2.8, which gathers weights of one dtype only.

    Warns:
        LorankWarning: something is left whole; says how much.

    """
    sharded, whole = False, []
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            packed = type(parameter).__name__ == "Params4bit"
            if packed and _hold_as_fp32(module, parameter):
                sharded = True
            elif packed or not (parameter.requires_grad or parameter.is_floating_point() or parameter.is_complex()):
                whole.append(parameter)
    if sharded and is_torch_version("<", "2.8"):
        raise TrainingError(
            f"a base in 4 bits under FSDP needs torch 2.8 or newer, and this is {torch.__version__}; or use DDP: every process "
            "then holds the whole base"
        )
    policy = plugin.mixed_precision_policy if sharded else None
    if policy is not None:
        plugin.mixed_precision_policy = dataclasses.replace(policy, param_dtype=None)
    if whole:
        size = sum(parameter.numel() * parameter.element_size() for parameter in whole)
        kinds = " and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in whole}))
        warnings.warn(
            f"{len(whole)} weights of the base are integers or packed ({kinds}), and FSDP cannot shard them: every process holds "
            f"all {size / 2**30:.2f} GiB of them. A base in 4 bits of bitsandbytes can be sharded",
            LorankWarning,
            stacklevel=3,
        )
    return whole


def _hold_as_fp32(module: nn.Module, parameter: nn.Parameter) -> bool:
    """Hold the bytes of a packed weight, (n, 1), as fp32; False where their number does not allow it."""
    held = parameter.data
    if held.dim() != 2 or held.shape[1] != 1 or held.numel() * held.element_size() % 4:
        return False
    parameter.data = held.reshape(-1).view(torch.float32).unsqueeze(1)
    # bitsandbytes makes its parameter anew of what FSDP gathers, by this.
    module.quant_storage = parameter.quant_storage = torch.float32  # type: ignore[assignment, attr-defined]
    return True


@torch.no_grad()
def changed_by_gathering(model: nn.Module, *, begun: bool = False) -> str | None:
    """What is wrong where FSDP2 gathers a 4-bit weight with other bits than it sharded; None: all come back as they are.

    Gathers every weight once, and compares on each process the part that is its own. All processes call it, and have the same
    answer. See `hold_for_sharding` for how bits change.

    Args:
        model: with a base in 4 bits, or without.
        begun: a pass has begun, so that what is gathered already stays so, and is not compared.

    """
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    changed: str | None = None
    packed = {
        m: name
        for name, m in model.named_modules()
        if hasattr(m, "weight") and getattr(m, "quant_state", None) is not None
    }
    if not packed:
        return None
    for wrapped in (module for module in model.modules() if isinstance(module, FSDPModule)):
        if not begun:
            wrapped.reshard()
        shards = {m: m.weight for m in wrapped.modules() if m in packed and isinstance(m.weight, DTensor)}
        if not shards:
            continue
        wrapped.unshard()
        gathered = {m: shard for m, shard in shards.items() if not isinstance(m.weight, DTensor)}
        for module, shard in gathered.items():
            if not _same_bits(module.weight, shard):
                changed = changed or packed[module]
        if gathered or not begun:
            wrapped.reshard()
    found: list[str | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, changed)
    if (name := next((name for name in found if name is not None), None)) is None:
        return None
    return (
        f"FSDP gathers the 4-bit weights of {name!r} with other bits than it sharded, so the model computes with other weights "
        "than its base has: on a GPU PyTorch's copy of 16-bit floats changes patterns that read as NaN, and a param_dtype of "
        "mixed precision rounds all of them. Load the base with bnb_4bit_quant_storage=torch.float32 and give fully_shard a "
        "mixed precision without param_dtype"
    )


def _same_bits(gathered: Any, shard: Any) -> bool:
    """Whether this process' part of what was gathered is its shard."""
    part = gathered
    for dim, placement in enumerate(shard.placements):
        if placement.is_shard():
            parts, number = part.chunk(shard.device_mesh.size(dim)), shard.device_mesh.get_local_rank(dim)
            part = parts[number] if number < len(parts) else part[:0]  # fewer rows than processes
    own = shard.to_local()
    return part.dtype == own.dtype and torch.equal(_bits(part), _bits(own.to(part.device)))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)
