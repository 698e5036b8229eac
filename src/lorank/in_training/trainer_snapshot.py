"""What a Trainer has logged, counted or drawn, as it was before a pass that is not one of training."""

import io
import operator
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from lorank.errors import TrainingError

# Data and parts of the Trainer that a loss reads and does not count in. The log is long, and the Trainer's loop alone writes it.
_LEFT_OUT = {"train_dataset", "eval_dataset", "model", "model_wrapped", "optimizer", "lr_scheduler", "callback_handler"}
_LEFT_OUT |= {"args", "accelerator", "log_history"}
_NO_STATE = (
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "huggingface_hub",
    "peft",
    "torch",
    "numpy",
    "pandas",
)
_CODE = (type, FunctionType, MethodType, ModuleType)
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_LISTED = 10_000  # of a longer list the entries are kept, and not what is inside of them
_COPIED = 2**24  # numbers of a tensor; a larger one that changes is refused


class TrainerSnapshot:
    """The attributes of a Trainer, and what is in them: containers, tensors, random generators, and objects with attributes.

    TRL's trainers append to their metrics and count tokens in `compute_loss`. All objects stay the same ones.
    """

    def __init__(self, trainer: Any) -> None:
        self._seen: dict[int, Any] = {}  # also keeps the objects alive, so that their ids stay theirs
        self._given_back: list[Callable[[], None]] = []
        for owner in (trainer, getattr(trainer, "state", None), getattr(trainer, "control", None)):
            if owner is not None:
                self._keep_attributes(owner)

    def give_back(self) -> None:
        """Everything as it was when the snapshot was taken.

        Raises:
            TrainingError: a tensor has changed that is too large for a copy of it to be kept.

        """
        for restore in self._given_back:
            restore()

    def _keep(self, value: Any) -> None:
        if id(value) in self._seen:
            return
        kind = type(value)
        if isinstance(value, torch.Tensor):
            self._seen[id(value)] = value
            self._keep_tensor(value)
        elif kind in _MAPPINGS or kind in (list, deque, set, tuple):
            self._seen[id(value)] = value
            self._keep_container(value)
        elif isinstance(value, (random.Random, np.random.Generator, np.random.RandomState, torch.Generator)):
            self._seen[id(value)] = value
            self._given_back.append(_generator_state(value))
        elif isinstance(value, (PreTrainedModel, PeftModel, Dataset, *_CODE)) or not hasattr(value, "__dict__"):
            return
        elif isinstance(value, nn.Module) or kind.__module__.partition(".")[0] not in _NO_STATE:
            self._keep_attributes(value)

    def _keep_attributes(self, owner: Any) -> None:
        self._seen[id(owner)] = owner
        before = dict(vars(owner))

        def restore() -> None:
            now = vars(owner)
            for name in set(now) - set(before):
                del now[name]
            # One by one: other threads may look at an object that did not change.
            now.update({name: value for name, value in before.items() if name not in now or now[name] is not value})

        self._given_back.append(restore)
        for name, value in before.items():
            if name not in _LEFT_OUT:
                self._keep(value)

    def _keep_container(self, value: Any) -> None:
        content = dict(value) if type(value) in _MAPPINGS else list(value)

        def restore() -> None:
            now = dict(value) if isinstance(value, dict) else list(value)
            if not _same(now, content):
                value.clear()
                value.update(content) if isinstance(value, (dict, set)) else value.extend(content)

        if type(value) is not tuple:
            self._given_back.append(restore)
        if len(content) <= _LISTED:
            for inner in content.values() if isinstance(content, dict) else content:
                self._keep(inner)

    def _keep_tensor(self, value: torch.Tensor) -> None:
        if (
            value.requires_grad or value.is_inference()
        ):  # what is trained; what cannot be changed in place outside of inference
            return
        version, before = value._version, value.clone() if value.numel() <= _COPIED else None

        def restore() -> None:
            if value._version == version:  # else left alone: a backward pass may still need it as it is
                return
            if before is None:
                raise TrainingError(
                    f"compute_loss changes a tensor of shape {tuple(value.shape)} in place, which passes of our own would change "
                    "too; use estimator='training-pass', which makes none"
                )
            with torch.no_grad():
                value.copy_(before)

        self._given_back.append(restore)


@contextmanager
def trainer_as_before(trainer: Any, start: TrainerSnapshot | None = None) -> Iterator[None]:
    """While open, the Trainer is as it was at `start` (None: as it is); afterwards it is as it was before.

    Raises:
        TrainingError: items are taken from an iterator that is an attribute of the Trainer; training would miss them.

    """
    now = TrainerSnapshot(trainer)
    if start is not None:
        start.give_back()
    for name, value in list(vars(trainer).items()):
        if isinstance(value, Iterator) and not isinstance(value, io.IOBase):
            setattr(trainer, name, _Reserved(name))
    try:
        yield
    finally:
        now.give_back()


class _Reserved:
    """In place of an iterator of the Trainer: its items are for training."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __iter__(self) -> "_Reserved":
        return self

    def __next__(self) -> Any:
        raise TrainingError(
            f"compute_loss takes items from the Trainer's iterator {self.name!r}; passes of our own would take them away from "
            "training. Use estimator='training-pass', which makes none"
        )


def _same(now: Any, before: Any) -> bool:
    """Whether two lists, or two dicts, hold the very same objects in the same order."""
    if isinstance(now, dict):
        return list(now) == list(before) and _same(list(now.values()), list(before.values()))
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _generator_state(generator: Any) -> Callable[[], None]:
    """A function that sets a random generator back to its state now."""
    state: Any
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        state = bits.state
        return lambda: setattr(bits, "state", state)
    if isinstance(generator, random.Random):
        state = generator.getstate()
        return lambda: generator.setstate(state)
    state = generator.get_state()

    def restore() -> None:
        generator.set_state(state)

    return restore
