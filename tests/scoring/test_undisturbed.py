"""Passes in train mode leave running means and checkpointing as they were."""

import functools

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lorank.scoring.undisturbed import train_mode_passes, undisturbed


class Checkpointed(nn.Module):
    """A linear layer and a batch norm, checkpointed in train mode as transformers does it."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.gradient_checkpointing = True
        self._gradient_checkpointing_func = functools.partial(checkpoint, use_reentrant=use_reentrant)

    def inner(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.norm(self.linear(x)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        checkpointed = self.gradient_checkpointing and self.training
        return self._gradient_checkpointing_func(self.inner, x) if checkpointed else self.inner(x)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("form", ["dropout", "comparison"])
def test_train_mode_passes_can_be_differentiated_and_leave_no_trace(form: str, use_reentrant: bool) -> None:
    model = Checkpointed(use_reentrant).train()
    before = {name: buffer.clone() for name, buffer in model.norm.named_buffers()}
    x = torch.randn(8, 3, requires_grad=True)
    with undisturbed(model, dropout_seed=1) if form == "dropout" else train_mode_passes(model):
        assert model.training
        (gradient,) = torch.autograd.grad(model(x).square().sum(), [model.linear.weight])
    assert gradient.any()
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.norm.named_buffers())
    assert model.gradient_checkpointing
    assert model.training
