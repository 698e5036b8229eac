"""Passes that leave a model in training as it was."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from lorank.scoring.precision import exact_4_bit


@contextmanager
def undisturbed(model: nn.Module, *, dropout_seed: int | None = None) -> Iterator[None]:
    """No dropout (or, with a seed, dropout of its own), and no draw from the random streams that training uses.

    4-bit weights stay in the form that takes gradients, see `lorank.scoring.precision.exact_4_bit`. Gradient checkpointing
    stays on, but for its reentrant form, which `torch.autograd.grad` cannot go through.
    """
    modes = [(module, module.training) for module in model.modules()]
    rates: list[tuple[nn.Module, str, float]] = []
    reentrant: list[Any] = []
    statistics: list[tuple[torch.Tensor, torch.Tensor]] = []
    if dropout_seed is not None:  # in train mode running means would be updated
        norms = [module for module in model.modules() if isinstance(module, _NormBase)]
        statistics = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        model.train(dropout_seed is not None)
        for module, training in modes:
            # transformers checkpoints a layer while it is training; what is inside of it stays without dropout, and what
            # the layer itself drops by `dropout(x, p=self.dropout, training=self.training)` (BART's family) does too.
            how = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
            checkpointed = getattr(module, "gradient_checkpointing", False)
            if checkpointed and how.get("use_reentrant", True) and dropout_seed is not None:
                reentrant.append(module)
            if checkpointed and not how.get("use_reentrant", True):
                module.training = training
                if dropout_seed is None:
                    own = [(module, key, value) for key, value in vars(module).items() if "drop" in key]
                    rates += [rate for rate in own if isinstance(rate[2], float)]
        for module, key, _ in rates:
            setattr(module, key, 0.0)
        for module in reentrant:
            module.gradient_checkpointing = False
        with torch.random.fork_rng(devices=devices), exact_4_bit(model):
            if dropout_seed is not None:
                torch.manual_seed(dropout_seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, key, rate in rates:
            setattr(module, key, rate)
        for module in reentrant:
            module.gradient_checkpointing = True
        with torch.no_grad():
            for buffer, before in statistics:
                buffer.copy_(before)
