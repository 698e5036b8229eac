"""A loaded base model, with what adapters on it are made of."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from peft import PeftConfig, TaskType, get_peft_model
from torch import nn

from lorank.models.trained_whole import TrainedWhole, train_copies_in_fp32


@dataclass(frozen=True)
class TaskModel:
    """A base model ready for adapters.

    Attributes:
        model: with the task head on top.
        heads: full names of the modules to train whole: the head, and whatever the checkpoint had no weights for.
        task_type: PEFT's word for what the model does.
        revision: of the model on the hub, which adapters record.
        whole: modules besides the heads that train whole, as the recipe asks for.
        token_rows: name of an embedding or output layer -> rows of new tokens, which train.

    """

    model: nn.Module
    heads: tuple[str, ...]
    task_type: TaskType
    revision: str | None = None
    whole: TrainedWhole = field(default_factory=TrainedWhole)
    token_rows: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @property
    def lora_options(self) -> dict[str, Any]:
        """What every LoraConfig on this model says: what trains whole, the task, the revision."""
        saved = [*self.heads, *self.whole.names]
        options = {"modules_to_save": saved or None, "task_type": self.task_type, "revision": self.revision}
        tokens = {name: list(rows) for name, rows in self.token_rows.items()}
        return options | self.whole.options | ({"trainable_token_indices": tokens} if tokens else {})

    def adapted(self, config: PeftConfig) -> Any:
        """The PEFT model of a config; what trains is fp32."""
        with experts_patterns_are_known():
            model = get_peft_model(self.model, config)
        train_copies_in_fp32(model)
        return model


@contextmanager
def experts_patterns_are_known() -> Iterator[None]:
    """Where PEFT puts an adapter on, without its warning that it ignored patterns for parameters of experts, which it heeds.

    PEFT 0.21 looks for the names of patterns among the modules alone. (Each rank is checked, or comes with its tensors.)
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"The following (rank|alpha)_pattern keys did not match.*\.experts\.", RuntimeWarning
        )
        yield
