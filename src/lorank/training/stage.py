"""What all stages share: Trainer arguments, resuming, and the end of the stage."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from rich.console import Console
from safetensors.torch import load_file, load_model
from torch import nn
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from lorank.errors import TrainingError
from lorank.in_training.rank_allocation import RankAllocation
from lorank.in_training.sharded_base import average_in_training
from lorank.lora_options import exactly, whole
from lorank.models.task_model import TaskModel
from lorank.processes import only_cpu, processes
from lorank.recipe.sections import TrainingSection
from lorank.targets import Target
from lorank.tasks.encoding import collator
from lorank.tasks.evaluation_settings import CHECKPOINTING
from lorank.training.checkpoints import CheckpointCallback, StageProgress, latest_checkpoint, read_progress
from lorank.training.prepared import Prepared, StageSettings
from lorank.training.trainer import SeededOrder, StageTrainer


def training_arguments(
    settings: StageSettings,
    section: TrainingSection,
    directory: Path,
    *,
    family: type[TrainingArguments] = TrainingArguments,
    evaluated: bool = False,
    **more: Any,
) -> TrainingArguments:
    """A stage in the words of transformers.

    Args:
        settings: of all stages.
        section: of this one.
        directory: for checkpoints.
        family: of arguments.
        evaluated: whether the loss of an evaluation set is measured while training.
        **more: arguments that only this family has.

    """
    if evaluated:
        more |= _evaluation(settings, section)
    return family(
        output_dir=str(directory),
        use_cpu=only_cpu(),
        num_train_epochs=section.epochs,
        max_steps=section.max_steps or -1,
        learning_rate=section.learning_rate,
        per_device_train_batch_size=section.batch_size,
        gradient_accumulation_steps=section.gradient_accumulation,
        warmup_steps=section.warmup,
        lr_scheduler_type=section.scheduler,
        weight_decay=section.weight_decay,
        max_grad_norm=section.max_grad_norm,
        **({} if section.optimizer is None else {"optim": section.optimizer}),
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        seed=settings.seed,
        save_strategy="steps",
        save_steps=more.pop("save_steps", settings.checkpoint_every),
        save_total_limit=2,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # it would hide what check_finite looks for, at one host sync a step
        report_to=settings.report_to,
        disable_tqdm=not sys.stderr.isatty(),
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        **{CHECKPOINTING: settings.gradient_checkpointing},
        **more,
    )


def _evaluation(settings: StageSettings, section: TrainingSection) -> dict[str, Any]:
    """Arguments of a stage that is evaluated: the loss alone; where it may end early, with the best checkpoint kept."""
    every = section.eval_every or settings.checkpoint_every
    found = {
        "eval_strategy": "steps",
        "eval_steps": every,
        "per_device_eval_batch_size": section.batch_size,
        "prediction_loss_only": True,
    }
    if section.patience is None:
        return found
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    # So that a resumed run has not forgotten how long it has waited.
    return {**found, **best, "save_steps": every, "restore_callback_states_from_checkpoint": True}


def initial_config(
    targets: Sequence[Target], task: TaskModel, *, rank: int, scale: float, dropout: float
) -> LoraConfig:
    """What triplets are made of: every target at `rank`, or at all that it can have; heads trained whole.

    Args:
        targets: what is adapted.
        task: the base model.
        rank: at the start.
        scale: alpha / r, of every target.
        dropout: in front of the adapters.

    """
    low = {exactly(target.name): target.max_rank for target in targets if target.max_rank < rank}
    return LoraConfig(
        r=rank,
        lora_alpha=scale * rank,
        rank_pattern=low,
        alpha_pattern={name: whole(scale * most) for name, most in low.items()},
        target_modules=[target.name for target in targets],
        lora_dropout=dropout,
        **task.lora_options,
    )


def train_stage(
    *,
    name: str,
    prepared: Prepared,
    section: TrainingSection,
    directory: Path,
    model: PreTrainedModel | PeftModel,
    rows: Dataset | IterableDataset,
    console: Console,
    callbacks: Sequence[TrainerCallback] = (),
    evaluated: bool = False,
) -> StageProgress:
    """Train `model` on `rows`, from the newest complete checkpoint in `directory` if there is one.

    Afterwards the model holds the weights of the stage's end, whether they were trained now or before.

    Args:
        name: of the stage, for messages.
        prepared: the run's.
        section: options of this stage.
        directory: for checkpoints.
        model: changed in place.
        rows: of `Prepared.stage_rows`.
        console: for lines of progress.
        callbacks: Trainer's.
        evaluated: whether the loss on the recipe's evaluation set is measured while training, and may end it.

    Raises:
        TrainingError: a loss or weight that is not finite; or with `on_nonfinite: skip` too many steps that are not.

    Warns:
        LorankWarning: steps were skipped.

    """
    eval_rows = None
    if evaluated and prepared.data.eval is not None:
        made = prepared.tokenize if prepared.data.stream is not None else prepared.training_rows
        eval_rows = made(prepared.data.eval).remove_columns("length")  # beside a stream, TRL packs them itself
    checkpoints = CheckpointCallback(evaluates=eval_rows is not None)
    with processes().main_process_first():  # which clears away what a killed process left
        checkpoint = latest_checkpoint(directory, whole=True)
    kind, options = _trainer_of(prepared, model)
    arguments = training_arguments(prepared.settings, section, directory, evaluated=eval_rows is not None, **options)
    if arguments.load_best_model_at_end:
        callbacks = (*callbacks, EarlyStoppingCallback(section.patience))
    order = None
    if isinstance(rows, Dataset):
        batch, grouped = section.batch_size * section.gradient_accumulation, prepared.settings.group_by_length
        order = SeededOrder(rows["length"], batch, prepared.settings.seed, group_by_length=grouped)
        rows = rows.remove_columns("length")
    trainer = kind(
        stage=name,
        loraplus_lr_ratio=section.loraplus_lr_ratio,
        skip=section.on_nonfinite == "skip",
        order=order,
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=eval_rows,
        data_collator=None if prepared.section.is_sft else collator(prepared.tokenizer, prepared.task_type),
        processing_class=prepared.tokenizer if prepared.section.is_sft else None,
        callbacks=[*callbacks, _LogLine(name, console), checkpoints],
    )
    allocations = [callback for callback in callbacks if isinstance(callback, RankAllocation)]
    for allocation in allocations:
        allocation.attach(trainer)
    if not allocations:
        average_in_training(model)
    checkpoints.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(_Bar)
    if checkpoint is not None:
        progress = checkpoints.restore(checkpoint)
        if progress.finished:
            best = _best(checkpoint) if arguments.load_best_model_at_end else checkpoint
            if isinstance(model, PeftModel):
                set_peft_model_state_dict(model, load_file(best / SAFETENSORS_WEIGHTS_NAME))
            else:
                load_model(model, best / "model.safetensors")
            _end_again(trainer, callbacks, checkpoint)
            # Device and autocast as after training, so that what follows is the same to the bit.
            trainer.accelerator.prepare_model(model, evaluation_mode=True)
            return progress
        console.print(f"{name}: continuing at step {progress.step} from {checkpoint}", highlight=False)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint is not None else None)
    except TrainingError:
        trainer.check_finite()  # a loss that is not finite explains what went wrong
        raise
    finally:
        checkpoints.close()
    processes().wait_for_everyone()  # until the main process has marked the last checkpoint as complete
    ended = latest_checkpoint(directory)
    assert ended is not None, "CheckpointCallback saves when a stage ends"
    if arguments.load_best_model_at_end:
        last, best = trainer.state.global_step, trainer.state.best_global_step
        said = f"ended at step {last} of {trainer.state.max_steps}; the weights of step {best} are kept"
        console.print(f"{name}: {said}", highlight=False)
    return read_progress(ended)


def _trainer_of(prepared: Prepared, model: nn.Module) -> tuple[type[StageTrainer], dict[str, Any]]:
    """The trainer of a stage, and what its arguments are: TRL's where TRL makes the rows.

    Raises:
        RecipeError: packing, and a model in which packed rows see each other.

    """
    if not prepared.section.is_sft:
        return StageTrainer, {}
    from lorank.training.sft_trainer import SFTConfig, SFTStageTrainer, check_rows_apart, sft_options  # slow to import

    check_rows_apart(model, prepared.section)
    return SFTStageTrainer, {
        "family": SFTConfig,
        **sft_options(prepared.section, streamed=prepared.data.stream is not None),
    }


def _best(checkpoint: Path) -> Path:
    """The checkpoint that a stage which chooses its best has kept, beside its last one."""
    found = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).best_model_checkpoint
    return checkpoint if found is None else checkpoint.parent / Path(found).name


def _end_again(trainer: StageTrainer, callbacks: Sequence[TrainerCallback], checkpoint: Path) -> None:
    """Let callbacks do what they do at the end of training; its results were lost with a killed process."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer.create_optimizer()
    known = {"model": trainer.model, "optimizer": trainer.optimizer, "train_dataloader": trainer.get_train_dataloader()}
    for callback in callbacks:
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, **known)
        callback.on_train_end(trainer.args, trainer.state, trainer.control, **known)


class _Bar(ProgressCallback):
    """The progress bar alone, without the dictionaries that it would write to the standard output."""

    def on_log(self, *_: Any, **__: Any) -> None:
        pass


class _LogLine(TrainerCallback):
    """One line for each log."""

    def __init__(self, name: str, console: Console) -> None:
        self.name, self.console = name, console

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any
    ) -> None:
        if state.is_world_process_zero and logs and "eval_loss" in logs:
            said = f"loss on data.eval {float(logs['eval_loss']):.4f}"
            self.console.print(f"{self.name}: step {state.global_step}/{state.max_steps}  {said}", highlight=False)
        if state.is_world_process_zero and logs and "loss" in logs:
            total = logs.get("rank_allocation/total_rank")
            cut = (
                f"  total rank {total}, {logs['rank_allocation/parameters']:,} parameters" if total is not None else ""
            )
            if (moved := logs.get("rank_allocation/moved_share")) is not None:
                cut += f"  {moved:.1%} of the plan's parameters moved"
            if (skipped := logs.get("skipped_steps")) is not None:
                cut += f"  {skipped} steps skipped so far"
            said = f"loss {float(logs['loss']):.4f}  lr {float(logs['learning_rate']):.2e}{cut}"
            self.console.print(f"{self.name}: step {state.global_step}/{state.max_steps}  {said}", highlight=False)
