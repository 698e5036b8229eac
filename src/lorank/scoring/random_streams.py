"""The states of the random streams that a forward pass may draw from: taken, set, and given back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn


@dataclass(frozen=True)
class RandomStreams:
    """States of Python's, NumPy's and PyTorch's generators (the CPU's, and those of the CUDA devices of a model)."""

    python: Any
    numpy: Any
    cpu: torch.Tensor
    cuda: dict[int, torch.Tensor]

    @classmethod
    def now(cls, model: nn.Module) -> "RandomStreams":
        """The states as they are."""
        devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
        cuda = {index: torch.cuda.get_rng_state(index) for index in devices}
        return cls(random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda)

    def set(self) -> None:
        """Put these states in place of the current ones."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        for index, state in self.cuda.items():
            torch.cuda.set_rng_state(state, index)


@contextmanager
def random_streams(model: nn.Module, start: RandomStreams | None = None) -> Iterator[None]:
    """Draw from `start` (None: from where the streams are) while open; afterwards the streams are as before."""
    before = RandomStreams.now(model)
    if start is not None:
        start.set()
    try:
        yield
    finally:
        before.set()
