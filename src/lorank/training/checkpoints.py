"""Checkpoints that a killed run can trust: complete or not counted."""

import os
import re
import shutil
import time
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from lorank.artefact import checksum, file_checksum, make_folder, read_json, sync, write_json
from lorank.errors import LorankWarning, OutputError, one_line
from lorank.interrupt import after_the_step, stop_is_asked
from lorank.processes import processes
from lorank.received_files import record_of

_MARKER = "stage.json"
_NAME = re.compile(r"checkpoint-\d+")
_LOADED = (".safetensors", ".bin", ".pt", ".pth")  # what transformers looks for by its name


@dataclass(frozen=True)
class StageProgress:
    """How far a stage had come when a checkpoint was written.

    Attributes:
        step: optimizer steps done.
        finished: nothing is left to train.
        seconds: training time so far, over all processes that worked on the stage.
        skipped: optimizer steps among them that were left out (`on_nonfinite: skip`).

    """

    step: int
    finished: bool
    seconds: float
    skipped: tuple[int, ...] = ()


def stage_folder(directory: Path, stage: str, before: str) -> Path:
    """Where a stage of a run keeps its checkpoints: a folder of its name, or `before`, what earlier versions called it."""
    return directory / (before if (directory / before).is_dir() else stage)


def latest_checkpoint(directory: Path, *, whole: bool = False) -> Path | None:
    """Newest complete checkpoint of a stage; what a killed process left half written is removed.

    Args:
        directory: of the stage's checkpoints.
        whole: read all files of a checkpoint, too, and go back to an older one where one is not as it was written; the newer one
            is then removed.

    Warns:
        LorankWarning: a newer checkpoint was damaged; names the file. Or one is a link to nothing.

    Raises:
        OutputError: all checkpoints were damaged; none is removed.

    """
    complete = sorted(_complete(directory), key=_number, reverse=True)
    damaged = dict[Path, str]()
    for checkpoint in complete:
        if not whole or (found := _damage(checkpoint)) is None:
            for other, what in damaged.items():
                warnings.warn(f"{what}; going on from {checkpoint}", LorankWarning, stacklevel=2)
                shutil.rmtree(other)
            return checkpoint
        damaged[checkpoint] = found
    if damaged:
        folders = " and ".join(map(str, damaged))
        raise OutputError(
            f"{'; '.join(damaged.values())}; no other checkpoint is whole: put the files back, or remove {folders} to begin this "
            "stage anew"
        )
    return None


def where_it_goes_on(directory: Path) -> str:
    """In words, for a stage that ends with an error: its last checkpoint, or that there is none."""
    found = max((path for path in _named(directory) if (path / _MARKER).is_file()), key=_number, default=None)
    return "no checkpoint was written" if found is None else f"the last checkpoint, {found}, is kept"


def _named(directory: Path) -> list[Path]:
    """Folders, and what else there is, with the name of a checkpoint; others are not a stage's own."""
    return [path for path in directory.glob("checkpoint-*") if _NAME.fullmatch(path.name)]


def _number(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _complete(directory: Path) -> list[Path]:
    complete = []
    for checkpoint in _named(directory):
        if (checkpoint / _MARKER).is_file():
            complete.append(checkpoint)
        elif checkpoint.is_symlink():
            target = os.path.realpath(checkpoint)
            warnings.warn(
                f"{checkpoint} is a link to {target}, where no whole checkpoint is: left out",
                LorankWarning,
                stacklevel=3,
            )
        elif checkpoint.is_dir():
            shutil.rmtree(checkpoint)
    return complete


def _marker(checkpoint: Path) -> dict[str, Any]:
    """The content of a checkpoint's marker.

    Raises:
        ValueError: another one than was written, or of another checkpoint.
        OSError: it cannot be read.

    """
    held = read_json(checkpoint / _MARKER)
    if not isinstance(held, dict):
        raise ValueError("it holds no keys and values")
    written = held.pop("checksum", None)  # earlier versions wrote none
    if written is not None and written != checksum(held):
        raise ValueError("its checksum is another")
    if held.get("step") != _number(checkpoint):
        raise ValueError(f"it is not of step {_number(checkpoint)}")
    return held


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a file of a complete checkpoint, by the sums in its marker; None where nothing is."""
    try:
        sums = _marker(checkpoint).get("files", {})
        for path in sorted(checkpoint.rglob("*")) if sums else ():
            name = path.relative_to(checkpoint).as_posix()
            if path.suffix in _LOADED and name not in sums and path.name != _MARKER:
                return f"{path} is no file of this checkpoint"
        for name, wanted in sums.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{path} is missing"
            if path.stat().st_size != wanted["bytes"]:
                return f"{path}: damaged ({path.stat().st_size:,} bytes of {wanted['bytes']:,})"
            if file_checksum(path) != wanted["sha256"]:
                return f"{path}: damaged (its SHA-256 is another)"
    except (ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        return f"{checkpoint / _MARKER}: damaged ({one_line(error)})"
    return None


def read_progress(checkpoint: Path) -> StageProgress:
    """How far the stage had come at a complete checkpoint.

    Raises:
        OutputError: its marker was damaged after it was written.

    """
    try:
        held = _marker(checkpoint)
        held.pop("files", None)
        held.pop("details", None)  # of earlier versions
        return record_of(StageProgress, held)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise OutputError(
            f"{checkpoint / _MARKER}: damaged ({one_line(error)}); remove {checkpoint} to go on without it"
        ) from None


class CheckpointCallback(TrainerCallback):
    """Saves when a stage ends or is told to stop, checks that what is saved is finite, and marks it as complete, last of all.

    transformers writes a checkpoint file by file. The marker, with size and SHA-256 of every other file, is written by renaming
    when all of them are on the disk, and two checkpoints are kept: a process killed at any moment leaves a complete one behind
    (or has not made one yet), and a file that is damaged later is known.

    A signal (`lorank.interrupt`) ends the stage after its step: a checkpoint is written, then KeyboardInterrupt is raised.

    Args:
        evaluates: whether an evaluation goes before the last checkpoint.

    """

    def __init__(self, *, evaluates: bool = False) -> None:
        self.evaluates = evaluates
        self.trainer: Any = None
        self.seconds_before = 0.0
        self._began = 0.0
        self._stops = False
        self._waiting = ExitStack()
        self._group: Any = None

    def restore(self, checkpoint: Path) -> StageProgress:
        """Continue time and skipped steps from a complete checkpoint; tells how far it had come."""
        progress = read_progress(checkpoint)
        self.seconds_before = progress.seconds
        if self.trainer.skips is not None:
            self.trainer.skips.steps = list(progress.skipped)
        return progress

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._began = time.monotonic()
        if state.is_world_process_zero:
            make_folder(Path(args.output_dir))
        self._waiting.enter_context(after_the_step())
        if processes().num_processes > 1:  # its own, on CPUs: asking in each step does not wait for a GPU
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """From here on a signal ends at once."""
        self.close()

    def close(self) -> None:
        """The same, where training ended in another way."""
        self._waiting.close()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Check before anything is logged or saved.

        Raises:
            OutputError: the folder of the checkpoints is gone: what would be saved now is no whole run.
            TrainingError: the loss or a weight is not finite.

        """
        if control.should_training_stop:
            control.should_save = True
            control.should_evaluate = self.evaluates
            if not any(
                "loss" in entry for entry in state.log_history
            ):  # shorter than `log_every`: one line, at its end
                control.should_log = True
        elif self._all_stop():
            self._stops = control.should_save = True
            control.should_evaluate = False
        if control.should_save or control.should_log:
            self.trainer.check_finite()
        if control.should_save and state.is_world_process_zero and not Path(args.output_dir).is_dir():
            raise OutputError(
                f"{args.output_dir} was removed or renamed while the run was at work; training stopped at step "
                f"{state.global_step}. Put the folder back, if you have it, and run the same command again"
            )

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """An evaluation between two steps is not waited for: the next call makes it again."""
        if stop_is_asked() and processes().num_processes == 1:
            raise KeyboardInterrupt

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Complete the checkpoint that transformers has just written."""
        processes().wait_for_everyone()  # each process has a file of its own in it
        if state.is_world_process_zero:
            checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            seconds = self.seconds_before + time.monotonic() - self._began
            skipped = () if self.trainer.skips is None else tuple(self.trainer.skips.steps)
            progress = StageProgress(state.global_step, control.should_training_stop, round(seconds, 3), skipped)
            content = {**asdict(progress), "files": _sums(checkpoint)}
            write_json(checkpoint / _MARKER, content | {"checksum": checksum(content)})
        if self._stops:
            processes().wait_for_everyone()
            raise KeyboardInterrupt

    def _all_stop(self) -> bool:
        """Whether any process was told to stop: then all do, after the same step."""
        if self._group is None:
            return stop_is_asked()
        asked = torch.tensor(int(stop_is_asked()))
        torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(asked)


def _sums(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of each file of a checkpoint, all of them on the disk."""
    found = {}
    for path in sorted(checkpoint.rglob("*")):
        if path.is_file() and path.name != _MARKER:
            sync(path)
            name = path.relative_to(checkpoint).as_posix()
            found[name] = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
    sync(checkpoint)
    return found
