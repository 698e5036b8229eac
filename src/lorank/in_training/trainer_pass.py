"""The last micro-batch of a Trainer, and the loss that its `compute_loss` gives it."""

import copy
import functools
from typing import Any

import torch
from torch import nn

from lorank.engine.training_pass import TRAINING_PASS, TrainingPass
from lorank.in_training.trainer_snapshot import TrainerSnapshot, trainer_as_before


class TrainerPass(TrainingPass):
    """What the Trainer's `compute_loss` was called with, and that very loss. The Trainer's logs and counters stay as they are."""

    way_out = TRAINING_PASS
    not_seen = (
        "compute_loss of the Trainer that this allocation is attached to was not called; does another Trainer train"
    )

    def __init__(self, model: nn.Module, trainer: Any) -> None:
        super().__init__(model)
        self.trainer = trainer
        self._arguments: tuple[Any, ...] = ()
        self._options: dict[str, Any] = {}
        self._state: TrainerSnapshot | None = None

    def start(self) -> None:
        """Listen to the calls of `compute_loss`."""
        self._replaced = vars(self.trainer).get("compute_loss")  # a function that a user has put on the instance
        self._compute_loss = compute_loss = self.trainer.compute_loss

        @functools.wraps(compute_loss)
        def listened(model: nn.Module, inputs: Any, *args: Any, **options: Any) -> Any:
            if self.model.training:
                # Compiled, dropout draws other numbers from the same random state.
                self.trained = model if getattr(model, "_orig_mod", None) is self.model else self.model
                # A copy: label smoothing, for one, takes the labels out of the inputs.
                self._arguments, self._options = args, options
                self._remember(copy.copy(inputs))
            return compute_loss(model, inputs, *args, **options)

        self.trainer.compute_loss = listened

    def stop(self) -> None:
        """Listen no more, and forget the inputs."""
        vars(self.trainer).pop("compute_loss", None)
        if self._replaced is not None:
            self.trainer.compute_loss = self._replaced
        super().stop()

    def keep_state(self) -> None:
        """Remember the Trainer as it is: a loss may depend on counters, queues and generators of its own."""
        self._state = TrainerSnapshot(self.trainer)

    def repeated(self, inputs: Any) -> torch.Tensor:
        """The loss of `inputs` from the state of `keep_state`, by what training calls."""
        state, self._state = self._state, None
        return self._loss(self.trained, inputs, state)

    def loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The Trainer's loss of these inputs, with the options that training gave (`num_items_in_batch`)."""
        return self._loss(model, inputs, None)

    def held_out_loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        """The Trainer's mean loss of these inputs."""
        return self._loss(model, inputs, None, held_out=True)

    def _loss(
        self, model: nn.Module, inputs: Any, state: TrainerSnapshot | None, *, held_out: bool = False
    ) -> torch.Tensor:
        with trainer_as_before(self.trainer, state), self.trainer.compute_loss_context_manager():
            # Training's options say by how many items of its own batches a sum is divided.
            arguments, options = ((), self._items(inputs)) if held_out else (self._arguments, self._options)
            found = self._compute_loss(model, copy.copy(inputs), *arguments, **options)
        loss: torch.Tensor = found[0] if isinstance(found, tuple) else found
        return loss

    def _items(self, inputs: Any) -> dict[str, Any]:
        """What the Trainer's own evaluation tells `compute_loss` of a batch."""
        count = getattr(self.trainer, "_get_num_items_in_batch", None)
        items = None if count is None else count([inputs], self.trainer.args.device)
        return {} if items is None else {"num_items_in_batch": items}
