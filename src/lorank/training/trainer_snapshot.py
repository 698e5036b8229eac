"""Logs and counters of a Trainer, as they were before a pass that is not one of training."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Data and parts of the Trainer that a loss reads and does not count in.
_LEFT_OUT = {"train_dataset", "eval_dataset", "model", "model_wrapped", "optimizer", "lr_scheduler", "callback_handler"}
_LEFT_OUT |= {"log_history"}  # long, and written by the Trainer's own loop alone
_COUNTER = 1024  # numbers; a larger tensor is no counter


@contextmanager
def trainer_as_before(trainer: Any) -> Iterator[None]:
    """What is logged or counted in the Trainer while open is forgotten: attributes, containers in them, small tensors.

    TRL's trainers append to their metrics, and count tokens, in `compute_loss`. The containers stay the same objects.
    """
    owners = [
        trainer,
        *(own for own in (getattr(trainer, name, None) for name in ("state", "control")) if own is not None),
    ]
    attributes = [(owner, dict(vars(owner))) for owner in owners]
    kept: dict[int, tuple[Any, Any]] = {}
    for _, values in attributes:
        for name, value in values.items():
            if name not in _LEFT_OUT:
                _keep(value, kept)
    try:
        yield
    finally:
        for owner, values in attributes:
            vars(owner).clear()
            vars(owner).update(values)
        for value, content in kept.values():
            _give_back(value, content)


def _keep(value: Any, kept: dict[int, tuple[Any, Any]]) -> None:
    """Remember the content of a container, and of those inside it, or of a small tensor."""
    if id(value) in kept:
        return
    if isinstance(value, torch.Tensor):
        if value.numel() <= _COUNTER and not value.requires_grad:
            kept[id(value)] = value, (value._version, value.clone())
    elif isinstance(value, dict):
        kept[id(value)] = value, dict(value)
        for inner in value.values():
            _keep(inner, kept)
    elif isinstance(value, (list, deque, set)):
        kept[id(value)] = value, list(value)
        for inner in value:
            _keep(inner, kept)


def _give_back(value: Any, content: Any) -> None:
    if isinstance(value, torch.Tensor):
        version, before = content
        if value._version != version:  # else left alone: a backward pass may still need it as it is
            with torch.no_grad():
                value.copy_(before)
        return
    value.clear()
    value.extend(content) if isinstance(value, (list, deque)) else value.update(content)
