"""The rank map as an image for TensorBoard, W&B and trackio, through the callbacks that the Trainer has."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState

from lorank.engine.allocator import Allocator
from lorank.engine.cut_rules import total
from lorank.plan import RankPlan
from lorank.report.picture import drawing, pixels

NAME = "rank_allocation/ranks"
_SHARE = 10  # at most so many images between the first and the last cut: each takes tenths of a second to draw

Show = Callable[[np.ndarray, int], object]


class TrackerImages:
    """Draws the ranks that a cut has left, where a tracker takes images; a tracker that is not used is not imported."""

    def __init__(self) -> None:
        self._step: int | None = None
        self._failed = False

    def show(self, trainer: Any, engine: Allocator, said: str, state: TrainerState) -> None:
        """Give every tracker of a Trainer the map of the ranks that the last cut has left.

        Args:
            trainer: that logs; None, where a callback does not know it, shows nothing.
            engine: of the allocation.
            said: title of the map; a second line says what is spent.
            state: the Trainer's.

        Warns:
            LorankWarning: the map could not be drawn, or a tracker did not take it; training goes on, without maps.

        """
        step, first, last = state.global_step, engine.schedule.first, engine.finished or engine.schedule.last
        soon = self._step is not None and step < last and step - self._step < (last - first) / _SHARE
        if trainer is None or not state.is_world_process_zero or soon or self._failed:
            return
        trackers = [show for callback in trainer.callback_handler.callbacks if (show := _image_call(callback))]
        if not trackers:
            return
        from lorank.report.rank_map import rank_figure

        plan = RankPlan(
            dict(engine.ranks), dict(engine.initial.costs), "now", total(engine.ranks, engine.initial.costs)
        )
        title = f"{said}\nstep {step:,}: {plan.spent:,} parameters, total rank {plan.total_rank:,}"
        with drawing(Path(f"the rank map of step {step:,}")):
            self._failed = True  # unless all goes well: it would fail at each cut
            image = pixels(rank_figure(plan, title=title))
            for show in trackers:
                show(image, step)
            self._failed = False
        self._step = step


def _image_call(callback: Any) -> Show | None:
    """What shows an `(height, width, 3)` uint8 image at a step in the tracker of a callback; None where there is none."""
    writer: Any = getattr(callback, "tb_writer", None)
    if hasattr(writer, "add_image"):
        return partial(_add, writer)
    for attribute in ("_wandb", "_trackio"):
        tracker = getattr(callback, attribute, None)
        if hasattr(tracker, "Image") and hasattr(tracker, "log") and getattr(callback, "_initialized", True):
            return partial(_log, tracker)
    return None


def _add(writer: Any, image: np.ndarray, step: int) -> None:
    writer.add_image(NAME, image, step, dataformats="HWC")


def _log(tracker: Any, image: np.ndarray, step: int) -> None:
    tracker.log({NAME: tracker.Image(image), "train/global_step": step})
