"""Passes that leave a model in training as it was."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

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
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        model.train(dropout_seed is not None)
        for module, training in modes:
            # transformers checkpoints a layer while it is training; what is inside of it stays without dropout, and what
            # the layer itself drops by `dropout(x, p=self.dropout, training=self.training)` (BART's family) does too.
            if getattr(module, "gradient_checkpointing", False) and not _is_reentrant(module):
                module.training = training
                if dropout_seed is None:
                    own = [(module, key, value) for key, value in vars(module).items() if "drop" in key]
                    rates += [rate for rate in own if isinstance(rate[2], float)]
        for module, key, _ in rates:
            setattr(module, key, 0.0)
        in_train_mode = nullcontext() if dropout_seed is None else train_mode_passes(model)
        with torch.random.fork_rng(devices=devices), exact_4_bit(model), in_train_mode:
            if dropout_seed is not None:
                torch.manual_seed(dropout_seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
        for module, key, rate in rates:
            setattr(module, key, rate)


@contextmanager
def train_mode_passes(model: nn.Module) -> Iterator[None]:
    """Passes in train mode that `torch.autograd.grad` can go through: running means stay, reentrant checkpointing is off."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    buffers = [(buffer, buffer.clone()) for module in norms for buffer in module.buffers()]
    checkpointed = (module for module in model.modules() if getattr(module, "gradient_checkpointing", False))
    reentrant = [module for module in checkpointed if _is_reentrant(module)]
    try:
        for module in reentrant:
            module.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for module in reentrant:
            module.gradient_checkpointing = True  # type: ignore[assignment]
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _is_reentrant(module: nn.Module) -> bool:
    """Whether checkpointing of this module is of the reentrant form, which is torch's default."""
    how = getattr(getattr(module, "_gradient_checkpointing_func", None), "keywords", {})
    return bool(how.get("use_reentrant", True))
