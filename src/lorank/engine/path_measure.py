"""Measures with passes of their own at other path points: on the batches of training, or on a scoring set."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn

from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.engine.estimators import (
    QuadratureCheck,
    check_quadrature,
    estimator_points,
    integrated_gradients,
    intervals_for,
    layer_groups,
)
from lorank.engine.loss_comparison import TOLERANCE, LossComparison
from lorank.engine.measure import Measure, training_batch_is_due
from lorank.engine.options import (
    GROWTH_IN_TRAINING,
    GROWTH_ON_SCORING_SET,
    TrainingBatchChoices,
    TrainingBatchOptions,
    is_compared,
)
from lorank.engine.smoothing import Tensors
from lorank.engine.training_pass import TrainingPass
from lorank.engine.unit_scores import signed
from lorank.errors import TrainingError
from lorank.module_names import places
from lorank.scoring.undisturbed import undisturbed

FIRST_INTERVALS = 8  # of the check from which `intervals: auto` is worked out
_CHECKED_SHARE = 50  # of `single-pass`: the check at the last cut takes one pass for so many steps of training, or 3


def last_check_intervals(measure: TrainingBatchOptions, intervals: int | None, steps: int) -> int:
    """Intervals N of the quadrature check at the last cut, even; it makes N + 1 passes.

    An estimator that has N intervals is checked at its own. `single-pass` has none: there N is 8, or less in a short
    training, so that the check makes at most a fiftieth as many passes as there are steps; never less than 2.

    Args:
        measure: the estimator.
        intervals: what N stands at; None while `intervals: auto` has found none.
        steps: optimizer steps of the whole training.

    """
    if measure.estimator == "single-pass":
        return min(FIRST_INTERVALS, max(2, (steps // _CHECKED_SHARE - 1) // 2 * 2))
    own = intervals or FIRST_INTERVALS
    return own + own % 2


class PathMeasure(Measure):
    """Passes batches at path points, and leaves training undisturbed.

    At the 1st measured mini-batch, and at each `comparison_growth` times as late as the one before, the loss of its passes is
    compared with training's (`is_compared`).
    """

    comparison_growth = GROWTH_ON_SCORING_SET

    def __init__(
        self,
        passed: TrainingPass,
        adapter: TripletAdapter,
        *,
        seed: int,
        loss_scale: float = 1.0,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Listen to what the model is trained on.

        Args:
            passed: the last micro-batch of training and its loss.
            adapter: its triplets.
            seed: of the drawn path coefficients.
            loss_scale: factor in the backward pass, divided out again.
            tolerance: of `LossComparison`.

        """
        self.passed, self.model, self.adapter = passed, passed.model, adapter
        self.seed, self.loss_scale = seed, loss_scale
        self._comparison = LossComparison(adapter, passed, tolerance=tolerance, loss_scale=loss_scale)
        self._compared = True  # nothing has been left uncompared yet
        self._listening = True
        self._loss_sum: torch.Tensor | float = 0.0
        self._losses: torch.Tensor | int = 0
        passed.start()

    def scalars(self) -> dict[str, float]:
        """Mean loss of the passes that scored, at their path points, on this process.

        A loss that is not finite is left out: it is of a step that was left out, or scores will say so.
        """
        found, count = self._loss_sum, int(self._losses)
        self._loss_sum, self._losses = 0.0, 0
        return {"rank_allocation/scoring_loss": float(found) / count} if count else {}

    def counted(self, loss: Callable[[nn.Module, Any], torch.Tensor]) -> Callable[[nn.Module, Any], torch.Tensor]:
        """A loss whose values are added up for `scalars`, where they are computed."""

        def computed(model: nn.Module, inputs: Any) -> torch.Tensor:
            value = loss(model, inputs)
            found = value.detach().float()
            finite = torch.isfinite(found)
            self._loss_sum, self._losses = self._loss_sum + torch.where(finite, found, 0.0), self._losses + finite
            return value

        return computed

    def close(self) -> None:
        """Stop listening."""
        self._comparison.stop()
        if self._listening:
            self.passed.stop()
        self._listening = False

    def begin_step(self, number: int) -> None:
        """Compare the loss with training's, if it is time; and again where that was not possible."""
        self._comparison.stop()  # of a step that was not made, or was resumed from elsewhere
        if self._listening and (is_compared(number + 1, self.comparison_growth) or not self._compared):
            self._comparison.watch()

    def compare(self, number: int) -> None:
        """Make the comparison that `begin_step` began.

        Raises:
            TrainingError: it is not known what training computed, or passes of our own compute another loss.

        """
        if not self._comparison.watching:
            return
        batch = self.last_batch()
        self.passes += 1
        try:
            self._compared = self._comparison.compare(batch, number + 1)
        except TrainingError:
            self.close()
            raise

    def last_batch(self) -> Any:
        """What training computed last.

        Raises:
            TrainingError: it was not seen.

        """
        if self.passed.inputs is None:
            raise TrainingError(
                f"{self.passed.needed_for} passes batches of training again, and what training computes was not seen "
                f"({self.passed.not_seen}); {self.passed.way_out}"
            )
        return self.passed.inputs


class TrainingPath(PathMeasure):
    """`w · ∫g` on the last batch of training (IGU-LoRA, eq. 4 to 6)."""

    comparison_growth = GROWTH_IN_TRAINING

    def __init__(
        self, passed: TrainingPass, adapter: TripletAdapter, options: TrainingBatchChoices, steps: int, **settings: Any
    ) -> None:
        """Listen to what the model is trained on; `steps` are those of the whole training, settings `PathMeasure`'s."""
        super().__init__(passed, adapter, **settings)
        self.options, self.steps = options, steps
        self.intervals = options.measure.intervals if isinstance(options.measure.intervals, int) else None
        self._groups: list[list[int]] | None = None
        if options.measure.path_scope == "layer":
            placed = places(adapter.names)
            self._groups = layer_groups([(placed[name].stack, placed[name].layer) for name in adapter.names])

    def is_due(self, step: int, schedule: CutSchedule, *, ready: bool) -> bool:
        """Every `every` steps before the last cut."""
        return training_batch_is_due(step, schedule, self.options, ready=ready)

    def before_step(self, step: int, number: int) -> Tensors | None:
        """Signed `w · ∫g` of λ, P and Q, as the state needs them."""
        return signed(self.sensitivities(number), self.adapter, self.options)

    def sensitivities(self, number: int) -> Tensors:
        """`w · ∫g` of λ, P and Q for scored mini-batch `number`."""
        batch = self.last_batch()
        self.compare(number)
        with self._own_passes():
            # Paths grow longer as the adapter trains: asked again at the 1st, 2nd, 4th, 8th ... mini-batch.
            if self.options.measure.intervals == "auto" and not number & (number + 1):
                self._choose_intervals(batch)
            intervals = self.intervals or FIRST_INTERVALS
            points = estimator_points(
                self.options.measure.estimator, intervals, random.Random(f"{self.seed}/path/{number}")
            )
            wrt = "lambda" if self.options.smooth.state == "triplet" else "all"
            found = integrated_gradients(
                self.model,
                self.adapter,
                batch,
                points,
                groups=self._groups,
                moved=self.options.measure.moved,
                wrt=wrt,
                loss=self.counted(self.passed.loss),
                loss_scale=self.loss_scale,
            )
        self.passes += len(points) * len(self._groups or [()])
        if wrt == "all" and self.options.smooth.lambda_score == "absolute":
            return found[len(self.adapter.names) :]
        return found

    def before_last_cut(self) -> None:
        """Quadrature check on the last batch, with the intervals of `last_check_intervals`."""
        if self._listening and self.passed.inputs is not None:
            intervals = last_check_intervals(self.options.measure, self.intervals, self.steps)
            with self._own_passes():
                self.check = self._check(self.last_batch(), intervals)

    def state_dict(self) -> dict[str, Any]:
        """JSON values for a checkpoint."""
        return {"intervals": self.intervals, "passes": self.passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.intervals, self.passes = state["intervals"], state["passes"]

    def _choose_intervals(self, batch: Any) -> None:
        check = self._check(batch, FIRST_INTERVALS)
        # At λ = 0 there is no path yet.
        wanted = intervals_for(self.options.measure.tolerance, check) if check.richardson_estimate < float("inf") else 0
        wanted = int(broadcast(torch.tensor(wanted, device=self.adapter.lambdas[0].device)))
        if wanted:
            self.intervals = max(self.intervals or 2, wanted)

    def _check(self, batch: Any, intervals: int) -> QuadratureCheck:
        self.passes += intervals + 1
        return check_quadrature(
            self.model,
            self.adapter,
            batch,
            intervals,
            moved=self.options.measure.moved,
            loss=self.passed.loss,
            loss_scale=self.loss_scale,
        )

    @contextmanager
    def _own_passes(self) -> Iterator[None]:
        """Passes that are not remembered, without dropout, random streams untouched."""
        with self.passed.own_passes(), undisturbed(self.model):
            yield
