"""Path integrals on the batches that training sees: the last one is remembered, and passed again at other path points."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn
from transformers import TrainingArguments

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.estimators import (
    QuadratureCheck,
    check_quadrature,
    estimator_points,
    integrated_gradients,
    intervals_for,
    layer_groups,
)
from lorank.engine.loss_comparison import HALF_TOLERANCE, TOLERANCE, LossComparison
from lorank.engine.options import PruningOptions
from lorank.engine.training_pass import ModelPass, TrainingPass
from lorank.errors import TrainingError
from lorank.in_training.trainer_pass import TrainerPass
from lorank.scoring.undisturbed import undisturbed
from lorank.targets import places

FIRST_INTERVALS = 8  # of the check from which `intervals: auto` is worked out


def path_measure(
    model: nn.Module,
    adapter: TripletAdapter,
    options: PruningOptions,
    args: TrainingArguments,
    optimizer: Any,
    trainer: Any = None,
) -> "PathMeasure":
    """A measure whose passes go through the `compute_loss` of a Trainer where it is known, else through the model.

    Raises:
        TrainingError: the Trainer is not known, and the loss is another than the model's or cannot be compared with it.

    """
    if trainer is None and args.label_smoothing_factor:
        raise TrainingError(
            f"label smoothing takes the labels away from the model, so estimator {options.estimator!r} cannot compute its loss "
            f"again; {ModelPass.way_out}"
        )
    if trainer is None and args.torch_compile and any(m.p > 0 for m in model.modules() if isinstance(m, nn.Dropout)):
        raise TrainingError(
            f"torch_compile draws dropout in an order of its own, so estimator {options.estimator!r} cannot compare its loss "
            f"with training's; {ModelPass.way_out}"
        )
    passed = ModelPass(model) if trainer is None else TrainerPass(model, trainer)
    half = args.bf16 or args.fp16 or any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters())
    return PathMeasure(
        passed,
        adapter,
        options,
        seed=args.seed,
        # Small fp16 gradients would vanish; the scaler that training has for that is not for passes of our own.
        loss_scale=1.0 if getattr(optimizer, "scaler", None) is None else 1024.0,
        tolerance=HALF_TOLERANCE if half else TOLERANCE,
    )


class PathMeasure:
    """Measures `w · ∫g` on the last training batch, with passes of its own that leave training undisturbed."""

    def __init__(
        self,
        passed: TrainingPass,
        adapter: TripletAdapter,
        options: PruningOptions,
        *,
        seed: int,
        loss_scale: float = 1.0,
        tolerance: float = TOLERANCE,
    ) -> None:
        """Listen to what the model is trained on.

        Args:
            passed: the last micro-batch of training and its loss.
            adapter: its triplets.
            options: estimator, intervals, moved, path_scope, state and lambda_score.
            seed: of the drawn path coefficients.
            loss_scale: factor in the backward pass, divided out again.
            tolerance: of `LossComparison`.

        """
        self.passed, self.model = passed, passed.model
        self.adapter, self.options, self.seed, self.loss_scale = adapter, options, seed, loss_scale
        self.intervals = options.intervals if isinstance(options.intervals, int) else None
        self.passes = 0
        self._comparison = LossComparison(adapter, passed, tolerance=tolerance, loss_scale=loss_scale)
        self._compared = True  # nothing has been left uncompared yet
        self._groups: list[list[int]] | None = None
        if options.path_scope == "layer":
            placed = places(adapter.names)
            self._groups = layer_groups([(placed[name].stack, placed[name].layer) for name in adapter.names])
        self._listening = True
        passed.start()

    @property
    def listening(self) -> bool:
        """Whether batches are still remembered."""
        return self._listening

    def close(self) -> None:
        """Stop listening."""
        self._comparison.stop()
        if self._listening:
            self.passed.stop()
        self._listening = False

    def before_pass(self, number: int) -> None:
        """Before the passes of the step that scored mini-batch `number` (from 0) is measured in.

        At the 1st, 2nd, 4th, 8th ... the loss is compared with training's; and again where that was not possible.
        """
        if not number & (number + 1) or not self._compared:
            self._comparison.watch()

    def sensitivities(self, number: int) -> list[torch.Tensor]:
        """Signed `w · ∫g` of λ, P and Q (as the state needs them) for scored mini-batch `number`.

        Raises:
            TrainingError: it is not known what training computed, or passes of our own compute another loss.

        """
        batch = self._last_batch()
        if self._comparison.watching:
            self.passes += 1
            try:
                self._compared = self._comparison.compare(batch, number + 1)
            except TrainingError:
                self.close()
                raise
        with self._own_passes():
            # Paths grow longer as the adapter trains: asked again at the 1st, 2nd, 4th, 8th ... mini-batch.
            if self.options.intervals == "auto" and not number & (number + 1):
                self._choose_intervals(batch)
            intervals = self.intervals or FIRST_INTERVALS
            points = estimator_points(self.options.estimator, intervals, random.Random(f"{self.seed}/path/{number}"))
            wrt = "lambda" if self.options.state == "triplet" else "all"
            found = integrated_gradients(
                self.model,
                self.adapter,
                batch,
                points,
                groups=self._groups,
                moved=self.options.moved,
                wrt=wrt,
                loss=self.passed.loss,
                loss_scale=self.loss_scale,
            )
        self.passes += len(points) * len(self._groups or [()])
        if wrt == "all" and self.options.lambda_score == "absolute":
            return found[len(self.adapter.names) :]
        return found

    def check(self) -> QuadratureCheck | None:
        """Quadrature check on the last batch, with the estimator's N (made even) where it has one; None without a batch."""
        if self.passed.inputs is None:
            return None
        intervals = FIRST_INTERVALS if self.options.estimator == "single-pass" else self.intervals or FIRST_INTERVALS
        with self._own_passes():
            return self._check(self._last_batch(), intervals + intervals % 2)

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"intervals": self.intervals, "passes": self.passes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """From a checkpoint."""
        self.intervals, self.passes = state["intervals"], state["passes"]

    def _choose_intervals(self, batch: Any) -> None:
        check = self._check(batch, FIRST_INTERVALS)
        # At λ = 0 there is no path yet. Of several processes the first one's batch decides.
        wanted = intervals_for(self.options.tolerance, check) if check.richardson_error < float("inf") else 0
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
            moved=self.options.moved,
            loss=self.passed.loss,
            loss_scale=self.loss_scale,
        )

    @contextmanager
    def _own_passes(self) -> Iterator[None]:
        """Passes that are not remembered, without dropout, random streams untouched."""
        with self.passed.own_passes(), undisturbed(self.model):
            yield

    def _last_batch(self) -> Any:
        if self.passed.inputs is None:
            raise TrainingError(
                f"estimator {self.options.estimator!r} passes the training batch again, and what training computes was not "
                f"seen ({self.passed.not_seen}); {self.passed.way_out}"
            )
        return self.passed.inputs
