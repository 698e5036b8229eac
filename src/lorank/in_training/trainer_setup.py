"""What RankAllocation has to know, and to change, of the Trainer that it is in."""

import functools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.assembly import TrainingFacts, needs_passes
from lorank.engine.options import Choices, ScoringSetChoices, TripletOptions
from lorank.engine.training_pass import ATTACH, ModelPass, TrainingPass
from lorank.errors import LorankWarning, TrainingError
from lorank.in_training.fresh_start import holds_lambdas
from lorank.in_training.sharded_base import warn_of_ddp
from lorank.in_training.trainer_pass import TrainerPass
from lorank.models.base_dtype import is_narrow

JOINED_LATE = (
    "RankAllocation joined after the Trainer was made (add_callback, or model_init); call attach(trainer), or give it to the "
    "Trainer's constructor, callbacks=[RankAllocation(...)], with a model"
)


def put_first(trainer: Any, callback: TrainerCallback) -> None:
    """Make it the first of the Trainer's callbacks: only there do those that report see what is logged by it."""
    callbacks = trainer.callback_handler.callbacks
    if callback in callbacks:
        callbacks.remove(callback)
    callbacks.insert(0, callback)


def check_trainer(trainer: Any, callback: TrainerCallback, options: Choices) -> None:
    """What this Trainer cannot be scored by, before anything is trained.

    Raises:
        TrainingError: it is no Trainer, or has another callback of this kind; it makes its batches while it trains (GRPO, RLOO),
            and the method needs a scoring set or trains on the path; or its loss makes its gradients in a backward hook, and the
            method makes passes of its own.

    """
    kind = type(trainer).__name__
    for needed in ("callback_handler", "compute_loss", "compute_loss_context_manager"):
        if not hasattr(trainer, needed):
            raise TrainingError(f"{kind} has no {needed}; give transformers' Trainer or a subclass of it")
    if any(isinstance(one, type(callback)) and one is not callback for one in trainer.callback_handler.callbacks):
        raise TrainingError(
            f"the Trainer has two {type(callback).__name__} callbacks; an adapter has one plan, give one"
        )
    if type(trainer)._prepare_inputs is not Trainer._prepare_inputs:
        if isinstance(options, ScoringSetChoices):
            raise TrainingError(
                f"{kind} makes what it trains on from its batches while it trains (completions and their rewards), so examples "
                "that are held out have no loss; use method='igu-lora' or 'adalora', which score what is trained on"
            )
        if options.triplets.train_on_path:
            raise TrainingError(
                f"{kind} generates with the model that it trains, and preset 'official' scales the adapter by another random "
                "factor for each micro-batch; use preset 'recommended' or 'paper'"
            )
    cached = [type(part).__name__ for part in _losses(trainer) if type(part).__name__.startswith("Cached")]
    if cached and needs_passes(options):
        other = "method='adalora'" if isinstance(options, ScoringSetChoices) else "estimator='training-pass'"
        raise TrainingError(
            f"{cached[0]} makes its gradients in a hook of the backward pass, part by part, where passes of our own do not see "
            f"them; use {other}, which scores by the gradients that training itself makes, or the loss without 'Cached'"
        )


def _losses(trainer: Any) -> list[nn.Module]:
    """Loss modules of a Trainer of sentence-transformers, with those inside of them."""
    loss = getattr(trainer, "loss", None)
    given = loss.values() if isinstance(loss, dict) else [loss]
    return [part for each in given if isinstance(each, nn.Module) for part in each.modules()]


def check_arguments(args: TrainingArguments) -> None:
    """Refuse what makes an allocation impossible, or wrong without a word, as soon as a Trainer has its arguments.

    Raises:
        TrainingError: callbacks would be replaced when training is resumed; a checkpoint would lack the scores; DeepSpeed
            trains (its configuration is in the arguments, or was given to `accelerate launch`); or several processes were
            started, and each would train alone.

    """
    if args.restore_callback_states_from_checkpoint:
        raise TrainingError(
            "restore_callback_states_from_checkpoint would replace RankAllocation by a new one; set it to False: "
            "RankAllocation restores itself"
        )
    if getattr(args, "enable_jit_checkpoint", False):  # of newer transformers
        raise TrainingError(
            "enable_jit_checkpoint writes its checkpoint in the middle of a step and without telling callbacks, so scores and "
            "cuts would not be in it; set it to False and save often (save_steps): what was trained since the last checkpoint is "
            "lost if the process is ended"
        )
    if args.deepspeed_plugin is not None:
        raise TrainingError(
            "RankAllocation cannot score under DeepSpeed, which steps inside of the backward pass and shows a callback no "
            "gradients; use one process or DDP, or score, allocate, then train the plan with it (docs/several-devices.md, "
            "examples/train_a_plan_deepspeed.py)"
        )
    started = int(os.environ.get("WORLD_SIZE") or 1) if "LOCAL_RANK" in os.environ else 1
    if started > args.world_size:
        raise TrainingError(
            f"{started} processes were started, and this Trainer knows of {args.world_size}: each would train alone, on all of "
            "the data, and write into the same folder; on a CPU give TrainingArguments(use_cpu=True), else start one process"
        )


def forget_best(state: TrainerState) -> None:
    """The best checkpoint so far does not count any more."""
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None


def check_setup(args: TrainingArguments, adapter: TripletAdapter, optimizer: Any, shrink: str) -> None:
    """What would make an allocation impossible, or wrong without a word."""
    check_arguments(args)
    kind = args.distributed_state.distributed_type.value if args.distributed_state is not None else "NO"
    if kind in ("MEGATRON_LM", "TP"):
        raise TrainingError(
            f"RankAllocation needs whole parameters and gradients on every process, which {kind} does not keep; "
            "use DDP or FSDP version 2 (torchrun, accelerate launch), or allocate first and train the plan with it"
        )
    if kind == "FSDP" and args.torch_compile:
        raise TrainingError(
            "with FSDP torch_compile hides where a backward pass ends, and there gradients are averaged; leave one of the two out"
        )
    warn_of_ddp(asked=bool(args.fsdp))
    if args.n_gpu > 1:
        raise TrainingError(
            f"{args.n_gpu} GPUs in one process (DataParallel) are not supported; start with torchrun or accelerate launch, or "
            "show one GPU: CUDA_VISIBLE_DEVICES=0"
        )
    if len(devices := {str(values.device) for values in adapter.lambdas}) > 1:
        raise TrainingError(f"the adapter lies on several devices ({', '.join(sorted(devices))}); put the model on one")
    if not holds_lambdas(optimizer, adapter):
        raise TrainingError(
            "the optimizer does not hold the triplets' λ: it was made before the adapter became triplets; call "
            "RankAllocation.prepare(model) before you make the optimizer"
        )
    if args.load_best_model_at_end and shrink == "every":
        raise TrainingError(
            "load_best_model_at_end could bring back tensors that shrink='every' has cut since; use shrink='last'"
        )


def warn_of_clipping(args: TrainingArguments, triplets: TripletOptions) -> None:
    """Of a callback that is not attached, and so asked only when gradients are clipped: no regulariser can be added before."""
    if args.max_grad_norm and triplets.orthogonality > 0 and triplets.orthogonality_added == "before-clipping":
        warnings.warn(
            f"the Trainer clips gradients to norm {args.max_grad_norm} before a callback is asked, so the regulariser "
            f"(orthogonality={triplets.orthogonality}) is added after clipping, not before it as in AdaLoRA's paper; {ATTACH}, "
            "or say that it is meant: orthogonality_added='after-clipping'",
            LorankWarning,
            stacklevel=3,
        )


def call_after_backward(trainer: Any, call: Callable[[Any], None]) -> Callable[[], None]:
    """Have `call` called with the factor of the gradients, when those of a step are there and not yet clipped.

    Returns:
        A function that takes it back.

    """
    replaced = vars(trainer).get("training_step")  # a function that a user has put on the instance
    training_step = trainer.training_step

    @functools.wraps(training_step)
    def stepped(*args: Any, **options: Any) -> Any:
        loss = training_step(*args, **options)
        if trainer.accelerator.sync_gradients:
            scaler: Any = getattr(trainer.accelerator, "scaler", None)
            scaled = scaler is not None and scaler.is_enabled()
            call(scaler.scale(torch.ones((), device=trainer.args.device)) if scaled else 1.0)
        return loss

    def take_back() -> None:
        vars(trainer).pop("training_step", None)
        if replaced is not None:
            trainer.training_step = replaced

    trainer.training_step = stepped
    return take_back


def trainer_pass(model: nn.Module, args: TrainingArguments, options: Choices, trainer: Any = None) -> TrainingPass:
    """What training computes: through the `compute_loss` of a Trainer where it is known, else through the model.

    Raises:
        TrainingError: the Trainer is not known, and the loss is another than the model's or cannot be compared with it.

    """
    passed: TrainingPass = ModelPass(model) if trainer is None else TrainerPass(model, trainer)
    passed.needed_for = (
        "a scoring set" if isinstance(options, ScoringSetChoices) else f"estimator {options.measure.estimator!r}"
    )
    if isinstance(options, ScoringSetChoices):
        passed.way_out = ATTACH if trainer is None else "use method='adalora', which scores by training's own gradients"
    if trainer is None and args.label_smoothing_factor:
        raise TrainingError(
            f"label smoothing takes the labels away from the model, so {passed.needed_for} cannot compute its loss again; "
            f"{passed.way_out}"
        )
    if trainer is None and args.torch_compile and any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout)):
        raise TrainingError(
            f"torch_compile draws dropout in an order of its own, so {passed.needed_for} cannot compare its loss with "
            f"training's; {passed.way_out}"
        )
    return passed


def training_facts(
    model: nn.Module, args: TrainingArguments, steps: int, train_dataloader: Any, optimizer: Any
) -> TrainingFacts:
    """What the engine has to know of a Trainer's training."""
    try:
        epoch = len(train_dataloader) // args.gradient_accumulation_steps
    except TypeError:  # a stream
        epoch = steps
    return TrainingFacts(
        steps,
        epoch,
        seed=args.seed,
        half=args.bf16 or args.fp16 or is_narrow(model),
        # The scaler that training has for small gradients is not for passes of our own.
        loss_scale=1.0 if getattr(optimizer, "scaler", None) is None else 1024.0,
        may_shrink=args.world_size == 1,
    )
