"""In which dtype a base model is loaded, and computes; what trains beside its adapters is fp32 whatever that is."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from lorank.processes import processes

# As recipes write them.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NARROW = (torch.bfloat16, torch.float16)


def dtype_of_checkpoint(config: PreTrainedConfig) -> str:
    """The dtype that a checkpoint's config names: bf16, fp16, or fp32 for all others and where it names none."""
    named = getattr(config, "dtype", None)
    return next((name for name, dtype in DTYPES.items() if named in (dtype, str(dtype).removeprefix("torch."))), "fp32")


def autocast_of(precision: str) -> AbstractContextManager[Any]:
    """The precision `fp32`, `bf16` or `fp16`, for a forward pass outside of Trainer."""
    narrow = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return nullcontext() if narrow is None else torch.autocast(processes().device.type, narrow)


def is_narrow(model: nn.Module) -> bool:
    """Whether any of its parameters are in bf16 or fp16."""
    return any(parameter.dtype in NARROW for parameter in model.parameters())


def train_in_fp32(model: nn.Module, names: Sequence[str]) -> None:
    """Keep modules that are trained whole in fp32, in place, and turn what a narrower base model gives them into fp32.

    Without the second, a matrix product would meet two dtypes wherever autocast is off. The hooks go with copies of the modules,
    such as those that PEFT makes for `modules_to_save`.

    Args:
        model: in any dtype.
        names: of the modules; what they return stays fp32, so they are heads.

    """
    for name in names:
        module = model.get_submodule(name)
        if is_narrow(module):
            module.to(torch.float32)
            widen_inputs(module)


def widen_inputs(module: nn.Module) -> None:
    """Turn whatever a module is given in bf16 or fp16 into fp32 first."""
    module.register_forward_pre_hook(_widened, with_kwargs=True)


def narrow_outputs(module: nn.Module, dtype: torch.dtype) -> None:
    """Turn what a module returns into `dtype`: a tensor, or a tuple with some in it."""
    module.register_forward_hook(partial(_narrowed, dtype))


def _narrowed(dtype: torch.dtype, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
    if type(output) is tuple:
        return tuple(_narrowed(dtype, module, inputs, one) for one in output)
    return output.to(dtype) if isinstance(output, torch.Tensor) and output.is_floating_point() else output


def _widened(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_wide, inputs)), {key: _wide(value) for key, value in named.items()}


def _wide(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_wide, value))
    return value.to(torch.float32) if isinstance(value, torch.Tensor) and value.dtype in NARROW else value
