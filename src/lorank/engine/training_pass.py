"""What training computed last, a micro-batch and its loss, in a form that can be computed again."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lorank.errors import TrainingError
from lorank.scoring.batches import loss_in
from lorank.scoring.random_streams import random_streams

ATTACH = "call allocation.attach(trainer) before trainer.train()"
TRAINING_PASS = "use estimator='training-pass', which scores by the gradients that training itself makes"


class TrainingPass:
    """The last micro-batch of training and its loss. Listens from `start` to `stop`.

    Attributes:
        model: computes the passes.
        trained: what training calls: `model`, or what torch.compile made of it.
        inputs: of the last micro-batch; None before the first.
        on_inputs: called when training begins to compute a loss.
        differentiated: whether gradients of the loss that it began last were seen.
        needed_for: what computes it again, as messages say it.
        way_out: what to do where this loss cannot be computed again.

    """

    needed_for = "this measure"
    way_out = f"{ATTACH}, or {TRAINING_PASS}"
    not_seen = "the model was not called with keyword arguments"

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.trained = model
        self.inputs: Any = None
        self.on_inputs: Callable[[], None] = lambda: None
        self.differentiated = True
        self._own = False

    def start(self) -> None:
        """Begin to listen."""
        raise NotImplementedError

    def stop(self) -> None:
        """Listen no more, and forget the inputs."""
        self.inputs = None

    def loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The loss of `inputs` as training computes it. Scalar."""
        raise NotImplementedError

    def held_out_loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The same loss of a batch that is not trained on. Scalar."""
        return self.loss(model, inputs)

    def keep_state(self) -> None:
        """Remember what the loss may depend on beside its inputs, as it is now, before training computes it."""

    def repeated(self, inputs: Any) -> torch.Tensor:
        """The loss of `inputs`, from the state of `keep_state`."""
        return self.loss(self.trained, inputs)

    @contextmanager
    def own_passes(self) -> Iterator[None]:
        """Passes that are not training's: they are not remembered, and random streams are as before afterwards."""
        self._own = True
        try:
            with random_streams(self.model):
                yield
        finally:
            self._own = False

    def _remember(self, inputs: Any) -> None:
        if not self._own:
            self.inputs = inputs
            self.on_inputs()


class ModelPass(TrainingPass):
    """What the model was called with, and the loss that it returns for it.

    That is the loss of training where the Trainer takes it as it is; `LossComparison` finds out where not.
    """

    def start(self) -> None:
        """Listen to the calls of the model."""
        self._hook = self.model.register_forward_pre_hook(self._called, with_kwargs=True)

    def stop(self) -> None:
        """Listen no more, and forget the inputs."""
        self._hook.remove()
        super().stop()

    def loss(self, model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The loss that the model returns.

        Raises:
            TrainingError: it returns none.

        """
        loss = loss_in(model(**inputs))
        if loss is None:
            raise TrainingError(
                "the model returns no loss for what it is called with: the Trainer computes its own (compute_loss, "
                f"compute_loss_func). {self.way_out.capitalize()}"
            )
        return loss

    def _called(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and not args:
            # `num_items_in_batch` divides by the items of all accumulated micro-batches; this is about one.
            self._remember({key: value for key, value in kwargs.items() if key != "num_items_in_batch"})
