"""The last micro-batch of a training loop of one's own, and the loss that it is trained by."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorank.engine.training_pass import ModelPass

Loss = Callable[[nn.Module, Any], torch.Tensor]


class LoopPass(ModelPass):
    """What the model was called with, and the loss that it returns; or the user's loss, and the batch that it is told of."""

    way_out = "give AllocationLoop the loss that you train by, loss=function(model, batch), and before_step(batch)"
    not_seen = "the model was not called with keyword arguments in train mode, and before_step was given no batch"

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__(model)
        self._given = loss

    def give(self, batch: Any) -> None:
        """The step's last micro-batch, as the loop has told it; what the model is called with is not what `loss` takes."""
        if batch is not None or self._given is not None:
            self.inputs = batch

    def loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The user's loss, or the model's."""
        return super().loss(model, inputs) if self._given is None else self._given(model, inputs)

    def _called(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._given is None and not args:
            super()._called(model, args, kwargs)
        elif model.training and torch.is_grad_enabled() and not self._own and self.differentiated:
            # The first call for this loss, which may make several: from here random streams are the same again.
            self.on_inputs()
