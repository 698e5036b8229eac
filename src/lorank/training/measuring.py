"""Path integrals on the batches that training sees: the last one is remembered, and passed again at other path points."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import broadcast
from torch import nn

from lorank.adapter.triplet import TripletAdapter
from lorank.errors import TrainingError
from lorank.scoring.estimators import (
    QuadratureCheck,
    check_quadrature,
    estimator_points,
    integrated_gradients,
    intervals_for,
    layer_groups,
)
from lorank.scoring.path import undisturbed
from lorank.targets import places
from lorank.training.pruning import PruningOptions

FIRST_INTERVALS = 8  # of the check from which `intervals: auto` is worked out


class PathMeasure:
    """Measures `w · ∫g` on the last training batch, with passes of its own that leave training undisturbed."""

    def __init__(
        self,
        model: nn.Module,
        adapter: TripletAdapter,
        options: PruningOptions,
        *,
        seed: int,
        loss_scale: float = 1.0,
    ) -> None:
        """Listen to what the model is trained on.

        Args:
            model: is called with keyword arguments, as Trainer does.
            adapter: its triplets.
            options: estimator, intervals, moved, path_scope, state and lambda_score.
            seed: of the drawn path coefficients.
            loss_scale: factor in the backward pass, divided out again.

        """
        self.model, self.adapter, self.options, self.seed, self.loss_scale = model, adapter, options, seed, loss_scale
        self.intervals = options.intervals if isinstance(options.intervals, int) else None
        self.passes = 0
        self._batch: Mapping[str, Any] | None = None
        self._measuring = False
        self._groups: list[list[int]] | None = None
        if options.path_scope == "layer":
            placed = places(adapter.names)
            self._groups = layer_groups([(placed[name].stack, placed[name].layer) for name in adapter.names])
        self._listening = True
        self._listener = model.register_forward_pre_hook(self._remember, with_kwargs=True)

    @property
    def listening(self) -> bool:
        """Whether batches are still remembered."""
        return self._listening

    def close(self) -> None:
        """Stop listening."""
        self._listener.remove()
        self._batch, self._listening = None, False

    def sensitivities(self, number: int) -> list[torch.Tensor]:
        """Signed `w · ∫g` of λ, P and Q (as the state needs them) for scored mini-batch `number`."""
        batch = self._last_batch()
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
                loss=_own_loss,
                loss_scale=self.loss_scale,
            )
        self.passes += len(points) * len(self._groups or [()])
        if wrt == "all" and self.options.lambda_score == "absolute":
            return found[len(self.adapter.names) :]
        return found

    def check(self) -> QuadratureCheck | None:
        """Quadrature check on the last batch, with the estimator's N (made even) where it has one; None without a batch."""
        if self._batch is None:
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

    def _choose_intervals(self, batch: Mapping[str, Any]) -> None:
        check = self._check(batch, FIRST_INTERVALS)
        # At λ = 0 there is no path yet. Of several processes the first one's batch decides.
        wanted = intervals_for(self.options.tolerance, check) if check.richardson_error < float("inf") else 0
        wanted = int(broadcast(torch.tensor(wanted, device=self.adapter.lambdas[0].device)))
        if wanted:
            self.intervals = max(self.intervals or 2, wanted)

    def _check(self, batch: Mapping[str, Any], intervals: int) -> QuadratureCheck:
        self.passes += intervals + 1
        return check_quadrature(
            self.model,
            self.adapter,
            batch,
            intervals,
            moved=self.options.moved,
            loss=_own_loss,
            loss_scale=self.loss_scale,
        )

    @contextmanager
    def _own_passes(self) -> Iterator[None]:
        """Passes that are not remembered, without dropout, random streams untouched."""
        self._measuring = True
        try:
            with undisturbed(self.model):
                yield
        finally:
            self._measuring = False

    def _last_batch(self) -> Mapping[str, Any]:
        if self._batch is None:
            raise TrainingError(
                f"estimator {self.options.estimator!r} passes the training batch again, but the model was not called with "
                "keyword arguments while training; train with Trainer, or use estimator='training-pass'"
            )
        return self._batch

    def _remember(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and not self._measuring and not args:
            # `num_items_in_batch` divides by the items of all accumulated micro-batches; this is about one.
            self._batch = {key: value for key, value in kwargs.items() if key != "num_items_in_batch"}


def _own_loss(model: nn.Module, batch: Mapping[str, Any]) -> torch.Tensor:
    loss: torch.Tensor | None = getattr(model(**batch), "loss", None)
    if loss is None:
        raise TrainingError(
            "the model returns no loss for what it is called with: the Trainer computes its own (compute_loss, "
            "compute_loss_func). Use estimator='training-pass', which scores by the gradients of whatever loss is trained on"
        )
    return loss
