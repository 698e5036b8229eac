"""Whether own passes compute the loss that training minimises: both gradients of λ are compared at α = 1."""

from typing import Any

import torch
from accelerate.utils import reduce

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.training_pass import TrainingPass
from lorank.errors import TrainingError
from lorank.scoring.random_streams import RandomStreams, random_streams
from lorank.scoring.undisturbed import train_mode_passes

# Largest distance of the two gradients, relative to training's. Equal passes differ by the order of sums in parallel
# kernels; half precision makes more of that. Another loss, or label smoothing of 0.1, is 5 to 100 times as far away.
TOLERANCE, HALF_TOLERANCE = 0.01, 0.05


class LossComparison:
    """Compares the gradient that a backward pass of training gives λ with that of `TrainingPass.loss`.

    The pass is made again in the same mode and from the same random states, so the two are equal up to one factor (a loss
    scale, gradient clipping, a mean over other counts), or they are of different losses.
    """

    def __init__(
        self, adapter: TripletAdapter, passed: TrainingPass, *, tolerance: float = TOLERANCE, loss_scale: float = 1.0
    ) -> None:
        self.model, self.adapter, self.passed = passed.model, adapter, passed
        self.tolerance, self.loss_scale = tolerance, loss_scale
        self._hooks: list[Any] = []
        self._gradients: dict[int, torch.Tensor] = {}
        self._streams: RandomStreams | None = None

    @property
    def watching(self) -> bool:
        """Whether gradients of training are remembered now."""
        return bool(self._hooks)

    def watch(self) -> None:
        """Remember the gradients of λ, micro-batch by micro-batch, until `compare` or `stop`."""
        self.stop()
        self.passed.on_inputs, self.passed.differentiated = self._begin, True
        for index, values in enumerate(self.adapter.lambdas):
            self._hooks.append(values.register_hook(lambda gradient, index=index: self._seen(index, gradient)))

    def stop(self) -> None:
        """Remember nothing more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._gradients, self._streams = [], {}, None
        self.passed.on_inputs = lambda: None

    def compare(self, inputs: Any, number: int) -> bool:
        """Make the last micro-batch's pass again, and compare. One host sync; all processes raise together.

        Returns:
            False where the gradients say nothing: all zero, or not finite (fp16 before its loss scale has settled).

        Raises:
            TrainingError: the losses differ; says what to do.

        """
        gradients, streams = self._gradients, self._streams
        self.stop()
        lambdas = self.adapter.lambdas
        training = torch.cat([gradients.get(i, torch.zeros_like(v)).detach() for i, v in enumerate(lambdas)]).double()
        with self.passed.own_passes(), random_streams(self.model, streams), train_mode_passes(self.model):
            loss = self.passed.repeated(inputs) * self.loss_scale
            own = torch.cat(torch.autograd.grad(loss, list(lambdas), materialize_grads=True)).double()
        distance = _distance(training, own)
        # A process whose gradients say nothing agrees with the others.
        known = torch.isfinite(distance)
        found = reduce(torch.stack([known.double(), (known & (distance > self.tolerance)).double()]), "sum").tolist()
        if found[1]:
            raise TrainingError(
                f"at scored mini-batch {number} the gradients of λ in training and in lorank's own pass of the same batch "
                f"differ by {float(distance):.0%}: ranks would be scored by another loss than the one that is trained "
                f"(or by one that draws or counts where it is not seen). To score the loss that is trained, {self.passed.way_out}"
            )
        return found[0] > 0

    def _begin(self) -> None:
        self._gradients, self.passed.differentiated = {}, False
        self._streams = RandomStreams.now(self.model)
        self.passed.keep_state()

    def _seen(self, index: int, gradient: torch.Tensor) -> None:
        self.passed.differentiated = True
        before = self._gradients.get(index)
        self._gradients[index] = gradient.detach().clone() if before is None else before + gradient


def _distance(training: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """`min_c ‖t - c o‖ / ‖t‖` over c >= 0; infinite where one of the two is zero alone, NaN where both are."""
    square = own.square().sum()
    factor = torch.clamp((training * own).sum() / square, min=0)
    size = training.norm()
    distance = (training - factor * own).norm() / size
    alone = (size > 0) ^ (square > 0)
    return torch.where(alone & torch.isfinite(size) & torch.isfinite(square), torch.ones_like(distance), distance)
