"""What RankAllocation has to know, and to change, of the Trainer that it is in."""

import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from lorank.adapter.triplet import TripletAdapter
from lorank.errors import TrainingError


def come_first(callback: TrainerCallback) -> None:
    """Move to the front of the Trainer's callbacks: only there do those that report see what is logged here.

    A callback is not told whose it is, but the handler that is calling it is on the stack. Where none is found (a Trainer
    that calls its callbacks in another way) the numbers of cuts are in `state.log_history` and nowhere else.

    Raises:
        TrainingError: there is another of its kind.

    """
    frame = inspect.currentframe()
    while frame is not None:
        handler = frame.f_locals.get("self")
        if isinstance(handler, CallbackHandler) and callback in handler.callbacks:
            if sum(isinstance(one, type(callback)) for one in handler.callbacks) > 1:
                raise TrainingError(
                    f"the Trainer has two {type(callback).__name__} callbacks; an adapter has one plan, give one"
                )
            handler.callbacks.remove(callback)
            handler.callbacks.insert(0, callback)
            return
        frame = frame.f_back


def check_setup(args: TrainingArguments, adapter: TripletAdapter, optimizer: Any, shrink: str) -> None:
    """What would make an allocation impossible, or wrong without a word."""
    kind = args.distributed_state.distributed_type.value if args.distributed_state is not None else "NO"
    if kind in ("DEEPSPEED", "FSDP", "MEGATRON_LM", "TP"):
        raise TrainingError(
            f"RankAllocation needs whole parameters and gradients on every process, which {kind} does not keep; "
            "use one process or DDP (torchrun, accelerate launch), or allocate first and train the plan with it"
        )
    if args.n_gpu > 1:
        raise TrainingError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported; start with torchrun or accelerate launch, or "
            "show one GPU: CUDA_VISIBLE_DEVICES=0"
        )
    if len(devices := {str(values.device) for values in adapter.lambdas}) > 1:
        raise TrainingError(f"the adapter lies on several devices ({', '.join(sorted(devices))}); put the model on one")
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(values) not in optimised for values in adapter.lambdas):
        raise TrainingError(
            "the optimizer does not hold the triplets' λ: it was made before the adapter became triplets; call "
            "RankAllocation.prepare(model) before you make the optimizer"
        )
    if args.load_best_model_at_end and shrink == "every":
        raise TrainingError(
            "load_best_model_at_end could bring back tensors that shrink='every' has cut since; use shrink='last'"
        )


def unscale(optimizer: Any) -> None:
    """Divide the loss scale out of fp16 gradients, unless clipping has done so."""
    scaler = getattr(optimizer, "scaler", None)
    if scaler is None or not scaler.is_enabled():
        return
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    try:
        scaler.unscale_(optimizer)
    except RuntimeError as error:
        if "already been called" not in str(error):
            raise


def trained_whole(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What trains beside the adapter: heads, biases."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name)


@torch.no_grad()
def start_again(model: PeftModel, adapter_name: str, beside: Mapping[str, torch.Tensor], seed: int) -> None:
    """Give the folded adapter PEFT's fresh start, and what trained beside it the values from before training.

    Drawn from the seed alone: a run that was resumed after its last cut begins again as one that was not.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, LoraLayer) and adapter_name in layer.lora_A:
                # On the CPU, so that every device begins alike; the distribution is PEFT's.
                start = nn.init.kaiming_uniform_(torch.empty(layer.lora_A[adapter_name].weight.shape), a=math.sqrt(5))
                layer.lora_A[adapter_name].weight.copy_(start)
                layer.lora_B[adapter_name].weight.zero_()
    for name, parameter in trained_whole(model):
        if name in beside:
            parameter.copy_(beside[name])
