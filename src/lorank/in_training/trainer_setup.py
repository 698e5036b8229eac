"""What RankAllocation has to know, and to change, of the Trainer that it is in."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from lorank.adapter.triplet import TripletAdapter
from lorank.errors import TrainingError

JOINED_LATE = (
    "RankAllocation joined after the Trainer was made (add_callback, or model_init); call attach(trainer), or give it to the "
    "Trainer's constructor, callbacks=[RankAllocation(...)], with a model"
)


def put_first(trainer: Any, callback: TrainerCallback) -> None:
    """Make it the first of the Trainer's callbacks: only there do those that report see what is logged by it.

    Raises:
        TrainingError: there is another of its kind, or it is no Trainer.

    """
    for needed in ("callback_handler", "compute_loss", "compute_loss_context_manager"):
        if not hasattr(trainer, needed):
            raise TrainingError(
                f"{type(trainer).__name__} has no {needed}; give transformers' Trainer or a subclass of it"
            )
    callbacks = trainer.callback_handler.callbacks
    if any(isinstance(one, type(callback)) and one is not callback for one in callbacks):
        raise TrainingError(
            f"the Trainer has two {type(callback).__name__} callbacks; an adapter has one plan, give one"
        )
    if callback in callbacks:
        callbacks.remove(callback)
    callbacks.insert(0, callback)


def refuse_restored_callbacks(args: TrainingArguments) -> None:
    """Refuse an option that would replace the callback when training is resumed."""
    if args.restore_callback_states_from_checkpoint:
        raise TrainingError(
            "restore_callback_states_from_checkpoint would replace RankAllocation by a new one; set it to False: "
            "RankAllocation restores itself"
        )


def check_uncut(adapter: TripletAdapter, ranks: Mapping[str, int]) -> None:
    """Refuse an adapter that an earlier training has cut, where a new one begins."""
    if dict(zip(adapter.names, adapter.ranks, strict=True)) != ranks:
        raise TrainingError(
            "an earlier training, which did not end, has cut this adapter already; resume it from a checkpoint, or start "
            "with a new model"
        )


def forget_best(state: TrainerState) -> None:
    """The best checkpoint so far does not count any more."""
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None


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
