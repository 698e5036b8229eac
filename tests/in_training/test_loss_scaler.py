"""fp16's loss scaler leaves steps out, and a fused optimizer does so without accelerate knowing (accelerate issue 4242).

fp16 needs a GPU; the scaler and the optimizers are the same on a CPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from tests.conftest import tiny_trainer
from torch import nn

from lorank import RankAllocation
from lorank.in_training.loss_scaler import step_was_left_out, unscale

FUSED = pytest.mark.parametrize("fused", [False, True])


def scaled(parameters: list[nn.Parameter], *, fused: bool, enabled: bool = True) -> AcceleratedOptimizer:
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, enabled=enabled)
    scaler.scale(torch.ones(()))  # makes its state, as the first backward pass does
    return AcceleratedOptimizer(torch.optim.AdamW(parameters, lr=0.1, fused=fused), scaler=scaler)


@FUSED
@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(bad: float, fused: bool) -> None:
    one, other, idle = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = scaled([one, other, idle], fused=fused)
    for gradient, left_out in ((1.0, False), (bad, True), (1.0, False)):
        before = one.detach().clone()
        one.grad, other.grad = torch.tensor([1.0, gradient]), torch.ones(2)
        unscale(optimizer)
        optimizer.step()
        assert step_was_left_out(optimizer) == left_out
        assert torch.equal(one, before) == left_out


@FUSED
def test_a_large_gradient_is_a_step(fused: bool) -> None:
    """Its square is not finite."""
    parameter = nn.Parameter(torch.ones(2))
    optimizer = scaled([parameter], fused=fused)
    parameter.grad = torch.tensor([1e30, -1e30])
    unscale(optimizer)
    optimizer.step()
    assert not step_was_left_out(optimizer)
    assert parameter.tolist() != [1.0, 1.0]


def test_without_a_scaler_nothing_is_left_out() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), float("nan"))
    off = scaled([parameter], fused=False, enabled=False)
    off.step()
    assert not step_was_left_out(off)
    assert not step_was_left_out(torch.optim.SGD([parameter]))
    empty = scaled([nn.Parameter(torch.ones(2))], fused=True)
    assert not step_was_left_out(empty)


@pytest.mark.parametrize("method", ["adalora", "igu-lora"])
def test_scores_know_nothing_of_a_step_that_overflowed(method: str, tmp_path: Path) -> None:
    """The first and the eighth step: the same plan, whether accelerate notices or not (a schedule waits only where it does)."""
    found = []
    for optim in ("adamw_torch", "adamw_torch_fused"):
        cuts = {"begin": 0.2, "end": 0.6, "interval": 0.1}
        allocation = RankAllocation(method, "r=2", **cuts, **({"every": 1} if method == "igu-lora" else {}))
        trainer = tiny_trainer(tmp_path / optim, optim=optim, lr_scheduler_type="constant")
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        overflow(trainer, (1, 8))
        allocation.attach(trainer)
        trainer.train()
        assert trainer.accelerator.scaler.get_scale() == 256.0
        found.append(allocation)
    one, other = found
    assert one.plan.ranks == other.plan.ranks
    assert one.plan.provenance["scoring_batches"] == other.plan.provenance["scoring_batches"]
    for name, values in one.scores.scores.items():
        np.testing.assert_allclose(values, other.scores.scores[name], rtol=1e-3, atol=1e-9)


def overflow(trainer: Any, steps: tuple[int, ...]) -> None:
    """Have a gradient overflow in these steps."""
    original = trainer.training_step

    def stepped(model: nn.Module, *args: Any) -> Any:
        loss = original(model, *args)
        if trainer.state.global_step + 1 in steps:
            next(p for p in model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
        return loss

    trainer.training_step = stepped
