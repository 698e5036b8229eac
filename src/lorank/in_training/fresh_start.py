"""Where training begins, and begins again: an uncut adapter, a fresh one, and everything beside it as it was before."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lorank.adapter.triplet import TripletAdapter
from lorank.errors import TrainingError
from lorank.module_names import is_adapter_tensor, without_adapter


def check_uncut(adapter: TripletAdapter, ranks: Mapping[str, int]) -> None:
    """Refuse an adapter that an earlier training has cut, where a new one begins."""
    if dict(zip(adapter.names, adapter.ranks, strict=True)) != ranks:
        raise TrainingError(
            "an earlier training, which did not end, has cut this adapter already; resume it from a checkpoint, or start "
            "with a new model"
        )


def holds_lambdas(optimizer: Any, adapter: TripletAdapter) -> bool:
    """Whether the optimizer was made after the adapter became triplets."""
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return all(id(values) in optimised for values in adapter.lambdas)


def trains_only(model: nn.Module, optimizer: Any) -> bool:
    """Whether every parameter that the optimizer holds is one of the model's."""
    own = {id(parameter) for parameter in model.parameters()}
    return all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])


def state_beside(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies, on the CPU, of what training changes beside the adapter: heads, biases, running statistics."""
    return {name: tensor.detach().cpu().clone() for name, tensor in _beside(model)}


@torch.no_grad()
def start_again(model: PeftModel, adapter_name: str, beside: Mapping[str, torch.Tensor], seed: int) -> None:
    """Give the folded adapter PEFT's fresh start, and what trained beside it the values from before training.

    Drawn from the seed alone: a run that was resumed after its last cut begins again as one that was not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A:
                # On the CPU, so that every device begins alike; the distribution is PEFT's.
                start = nn.init.kaiming_uniform_(torch.empty(layer.lora_A[adapter_name].weight.shape), a=math.sqrt(5))
                layer.lora_A[adapter_name].weight.copy_(start)
                layer.lora_B[adapter_name].weight.zero_()
    for name, tensor in _beside(model):
        if name in beside:
            tensor.copy_(beside[name])


def _beside(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_adapter_tensor(name):
            yield without_adapter(name), parameter  # a module of rank 0 has no adapter around it any more
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            yield from module.named_buffers(name, recurse=False)
