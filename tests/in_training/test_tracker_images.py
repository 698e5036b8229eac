"""What a Trainer's trackers are given of an allocation: numbers through Trainer's own log, and the rank map as an image."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.conftest import tiny_trainer
from tests.in_training.pruning_cases import ADALORA, IGU
from transformers import TrainerCallback

from lorank import RankAllocation
from lorank.errors import LorankWarning
from lorank.in_training.tracker_images import NAME


class StandInWriter:
    """Stands for TensorBoard's SummaryWriter: keeps what it is given."""

    def __init__(self) -> None:
        self.images: list[tuple[str, np.ndarray, int]] = []

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.images.append((tag, image, step))


class StandInTracker:
    """Stands for the modules wandb and trackio, which have the same two names."""

    def __init__(self) -> None:
        self.logged: list[dict[str, Any]] = []

    def Image(self, image: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(image=image)

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)


class StandIn(TrainerCallback):
    """Stands for the callback of a tracker."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)
        self.seen: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.seen.append(dict(logs))


def trained(tmp_path: Path, *callbacks: TrainerCallback, **options: Any) -> RankAllocation:
    allocation = RankAllocation(budget="r=2", **options)
    trainer = tiny_trainer(tmp_path, *callbacks)
    allocation.attach(trainer)
    trainer.train()
    return allocation


def test_each_tracker_gets_the_map_of_the_ranks_that_cuts_left(tmp_path: Path) -> None:
    writer, wandb, trackio = StandInWriter(), StandInTracker(), StandInTracker()
    callbacks = StandIn(tb_writer=writer), StandIn(_wandb=wandb, _initialized=True), StandIn(_trackio=trackio)
    trained(tmp_path, *callbacks, **ADALORA)
    steps = [step for _, _, step in writer.images]
    assert steps == [10, 12]  # a log, and the last cut
    for tag, image, _ in writer.images:
        assert (tag, image.dtype, image.shape[2]) == (NAME, np.uint8, 3)
        assert len(np.unique(image)) > 10
    assert not np.array_equal(writer.images[0][1], writer.images[1][1])
    for tracker in (wandb, trackio):
        assert [values["train/global_step"] for values in tracker.logged] == steps
        assert np.array_equal(tracker.logged[-1][NAME].image, writer.images[-1][1])


def test_numbers_are_beside_the_loss_and_without_a_tracker_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lorank.in_training.tracker_images.pixels", lambda figure: pytest.fail("drawn"))
    reporter, imported = StandIn(tb_writer=None), {"tensorboard", "wandb", "trackio"} & set(sys.modules)
    allocation = trained(tmp_path, reporter, **IGU)
    assert {"tensorboard", "wandb", "trackio"} & set(sys.modules) == imported
    cuts = [logs for logs in reporter.seen if "rank_allocation/total_rank" in logs]
    assert cuts[-1]["rank_allocation/parameters"] == allocation.plan.spent
    assert cuts[-1]["rank_allocation/total_rank"] == allocation.plan.total_rank
    for logs in cuts:
        assert 0 < logs["rank_allocation/scoring_loss"] < 10
        assert logs["rank_allocation/scoring_loss"] != logs["loss"]


def test_a_tracker_that_fails_costs_no_training(tmp_path: Path) -> None:
    class Full(StandInWriter):
        def add_image(self, *_: Any, **__: Any) -> None:
            raise OSError("disk full")

    with pytest.warns(LorankWarning, match=r"rank map of step 10 was not drawn \(OSError: disk full\)"):
        allocation = trained(tmp_path, StandIn(tb_writer=Full()), **ADALORA)
    assert allocation.plan.spent > 0


def test_tensorboard_itself(tmp_path: Path) -> None:
    """Its own writer and reader, where it is installed: pip install tensorboard."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from transformers.integrations import TensorBoardCallback

    callback = TensorBoardCallback()
    callback.logging_dir = str(tmp_path / "logs")
    allocation = trained(tmp_path, callback, **ADALORA)
    read = accumulator.EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [event.step for event in read.Images(NAME)] == [10, 12]
    assert read.Images(NAME)[0].encoded_image_string.startswith(b"\x89PNG")
    spent = read.Scalars("train/rank_allocation/parameters")
    assert spent[-1].value == allocation.plan.spent
