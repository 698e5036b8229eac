"""Checkpoints that a killed run can trust: complete or not counted."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorank.artefact import write_json
from lorank.errors import OutputError, TrainingError

_MARKER = "stage.json"
_TENSORS = "stage_state.safetensors"


@dataclass(frozen=True)
class StageProgress:
    """How far a stage had come when a checkpoint was written.

    Attributes:
        step: optimizer steps done.
        finished: nothing is left to train.
        seconds: training time so far, over all processes that worked on the stage.
        details: JSON values of the stage's own.

    """

    step: int
    finished: bool
    seconds: float
    details: dict[str, Any]


class StageState(Protocol):
    """What a stage keeps beside model, optimizer and random state.

    `check_finite` is set by `train_stage` before training: to be called before the state is acted on.
    """

    check_finite: Callable[[], None]

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Tensors, and JSON values."""
        ...

    def restore(self, tensors: Mapping[str, torch.Tensor], details: Mapping[str, Any]) -> None:
        """Continue from what `state` returned."""
        ...


def latest_checkpoint(directory: Path) -> Path | None:
    """Newest complete checkpoint of a stage; what a killed process left half written is removed."""
    complete = []
    for checkpoint in directory.glob("checkpoint-*"):
        if (checkpoint / _MARKER).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)


def read_progress(checkpoint: Path) -> StageProgress:
    """How far the stage had come at a complete checkpoint.

    Raises:
        OutputError: its marker was damaged after it was written.

    """
    try:
        return StageProgress(**json.loads((checkpoint / _MARKER).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"{checkpoint / _MARKER}: damaged ({error}); remove {checkpoint} to go on without it"
        ) from None


class CheckpointCallback(TrainerCallback):
    """Saves when a stage ends, checks that what is saved is finite, and marks each checkpoint as complete, last of all.

    transformers writes a checkpoint file by file. The marker is written, by renaming, after every other file, and two
    checkpoints are kept, so a process killed at any moment leaves a complete one behind (or has not made one yet).
    """

    def __init__(self, stage_state: StageState | None = None) -> None:
        self.stage_state = stage_state
        self.trainer: Any = None
        self.seconds_before = 0.0
        self._began = 0.0

    def restore(self, checkpoint: Path) -> StageProgress:
        """Continue time and the stage's own state from a complete checkpoint; tells how far it had come."""
        progress = read_progress(checkpoint)
        self.seconds_before = progress.seconds
        if self.stage_state is not None:
            self.stage_state.restore(load_file(checkpoint / _TENSORS), progress.details)
        return progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check before anything is logged or saved."""
        if control.should_training_stop:
            control.should_save = True
        if control.should_save or control.should_log:
            self.check_finite()

    def check_finite(self) -> None:
        """Loss, weights and the stage's own tensors; one host sync each.

        Raises:
            TrainingError: says what is not finite, and at which step.

        """
        self.trainer.check_finite()
        tensors = {} if self.stage_state is None else self.stage_state.state()[0]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
            where, step = self.trainer.args.output_dir, self.trainer.state.global_step
            raise TrainingError(
                f"{self.trainer.stage}: the scores are not finite at step {step}; nothing was saved since, "
                f"the last checkpoint is kept in {where}. Lower the learning rate, or use precision fp32"
            )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint that transformers has just written."""
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        details: dict[str, Any] = {}
        if self.stage_state is not None:
            tensors, details = self.stage_state.state()
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, checkpoint / _TENSORS)
        seconds = self.seconds_before + time.monotonic() - self._began
        progress = StageProgress(state.global_step, control.should_training_stop, round(seconds, 3), details)
        write_json(checkpoint / _MARKER, asdict(progress))
