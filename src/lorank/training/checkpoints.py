"""Checkpoints that a killed run can trust: complete or not counted."""

import json
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorank.artefact import write_json
from lorank.errors import OutputError

_MARKER = "stage.json"


@dataclass(frozen=True)
class StageProgress:
    """How far a stage had come when a checkpoint was written.

    Attributes:
        step: optimizer steps done.
        finished: nothing is left to train.
        seconds: training time so far, over all processes that worked on the stage.

    """

    step: int
    finished: bool
    seconds: float


def stage_folder(directory: Path, stage: str, before: str) -> Path:
    """Where a stage of a run keeps its checkpoints: a folder of its name, or `before`, what earlier versions called it."""
    return directory / (before if (directory / before).is_dir() else stage)


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
        held = json.loads((checkpoint / _MARKER).read_text(encoding="utf-8"))
        held.pop("details", None)  # of earlier versions
        return StageProgress(**held)
    except (ValueError, TypeError, AttributeError) as error:
        raise OutputError(
            f"{checkpoint / _MARKER}: damaged ({error}); remove {checkpoint} to go on without it"
        ) from None


class CheckpointCallback(TrainerCallback):
    """Saves when a stage ends, checks that what is saved is finite, and marks each checkpoint as complete, last of all.

    transformers writes a checkpoint file by file. The marker is written, by renaming, after every other file, and two
    checkpoints are kept, so a process killed at any moment leaves a complete one behind (or has not made one yet).

    Args:
        evaluates: whether an evaluation goes before the last checkpoint.

    """

    def __init__(self, *, evaluates: bool = False) -> None:
        self.evaluates = evaluates
        self.trainer: Any = None
        self.seconds_before = 0.0
        self._began = 0.0

    def restore(self, checkpoint: Path) -> StageProgress:
        """Continue the time from a complete checkpoint; tells how far it had come."""
        progress = read_progress(checkpoint)
        self.seconds_before = progress.seconds
        return progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check before anything is logged or saved."""
        if control.should_training_stop:
            control.should_save = True
            control.should_evaluate = self.evaluates
        if control.should_save or control.should_log:
            self.trainer.check_finite()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint that transformers has just written."""
        if not state.is_world_process_zero:
            return
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        seconds = self.seconds_before + time.monotonic() - self._began
        progress = StageProgress(state.global_step, control.should_training_stop, round(seconds, 3))
        write_json(checkpoint / _MARKER, asdict(progress))
