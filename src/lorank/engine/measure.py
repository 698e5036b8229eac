"""What is measured while training, and when: the interface, and the measure that needs no passes of its own."""

from collections.abc import Iterator, Mapping
from typing import Any

from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.engine.estimators import QuadratureCheck
from lorank.engine.options import TrainingBatchChoices
from lorank.engine.smoothing import Tensors
from lorank.engine.unit_scores import training_sensitivities


class Measure:
    """One number for everything that is scored, from one mini-batch at a time.

    A step is an optimizer step, counted from 1; `number` is that of the measured mini-batch, counted from 0. Tensors that are
    returned belong to the caller.

    Attributes:
        passes: forward and backward passes beside training's own, so far.
        check: of the quadrature, once the last cut is made.
        few: mini-batches below which chance has its say, and there is a warning.
        more: how to get more of them.
        waits_for_end: whether `at_end` gives something, and nothing else does.

    """

    passes = 0
    check: QuadratureCheck | None = None
    waits_for_end = False
    few, more = 3, "lower every, or train longer"

    def is_due(self, step: int, schedule: CutSchedule, *, ready: bool) -> bool:
        """Whether something is measured at this step; `ready` says whether there are scores to rank by."""
        raise NotImplementedError

    def begin_step(self, number: int) -> None:
        """Before the forward passes of a step at which something is measured."""

    def after_backward(self, step: int) -> Tensors | None:
        """Gradients are complete, and the regulariser will be added to them now."""
        return None

    def before_step(self, step: int, number: int) -> Tensors | None:
        """Gradients are complete and unscaled, weights are those that they belong to."""
        return None

    def after_step(self, step: int, number: int) -> Tensors | None:
        """Weights are new, gradients still there."""
        return None

    def at_end(self) -> Iterator[Tensors]:
        """What is measured once, when training is over."""
        yield from ()

    def before_last_cut(self) -> None:
        """The adapter is as it will be cut: last chance to look at it."""

    def close(self) -> None:
        """Look at nothing any more."""

    def scalars(self) -> dict[str, float]:
        """What is logged of the measured mini-batches since this was last called. One host sync at most."""
        return {}

    def provenance(self) -> Mapping[str, Any]:
        """JSON values that scores and plan carry."""
        return {"scoring_passes": self.passes}

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""


class TrainingGradient(Measure):
    """`w · g` from the gradients that training makes anyway (AdaLoRA, eq. 8; IGU-LoRA's code)."""

    def __init__(self, adapter: TripletAdapter, options: TrainingBatchChoices) -> None:
        self.adapter, self.options = adapter, options

    def is_due(self, step: int, schedule: CutSchedule, *, ready: bool) -> bool:
        """Every `every` steps before the last cut."""
        return training_batch_is_due(step, schedule, self.options, ready=ready)

    def after_backward(self, step: int) -> Tensors | None:
        """`w · g` before the regulariser's gradient is in it, where entries of P and Q are scored."""
        if self.options.measure.measured == "after-step" or self.options.smooth.state == "triplet":
            return None  # λ has no regulariser
        return training_sensitivities(self.adapter, self.options, step)

    def before_step(self, step: int, number: int) -> Tensors | None:
        """Weights and gradient of one moment."""
        if self.options.measure.measured == "after-step":
            return None
        return training_sensitivities(self.adapter, self.options, step)

    def after_step(self, step: int, number: int) -> Tensors | None:
        """New weights, and the gradient that led to them."""
        if self.options.measure.measured == "before-step":
            return None
        return training_sensitivities(self.adapter, self.options, step)


def training_batch_is_due(step: int, schedule: CutSchedule, options: TrainingBatchChoices, *, ready: bool) -> bool:
    """Whether a batch of training is scored at this step."""
    return (step < schedule.last or not ready) and step % options.measure.every == 0
