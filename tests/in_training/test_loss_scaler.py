"""fp16's loss scaler leaves steps out, and a fused optimizer does so without accelerate knowing (accelerate issue 4242).

fp16 needs a GPU; the scaler and the optimizers are the same on a CPU.
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from tests.conftest import random_batch, tiny_trainer
from torch import nn

from lorank import AllocationLoop, RankAllocation
from lorank.in_training.loss_scaler import LeftOutSteps, unscale

CUTS: dict[str, Any] = {"begin": 0.2, "end": 0.6, "interval": 0.1}
FUSED = pytest.mark.parametrize("fused", [False, True])


def scaled(parameters: list[nn.Parameter], *, fused: bool, **options: Any) -> AcceleratedOptimizer:
    Accelerator(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, **options)
    scaler.scale(torch.ones(()))  # makes its state, as the first backward pass does
    return AcceleratedOptimizer(torch.optim.AdamW(parameters, lr=0.1, fused=fused), scaler=scaler)


@FUSED
@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(bad: float, noted: bool, fused: bool) -> None:
    """Also where that gradient is made finite before the step, which a scaler does not see."""
    one, other, idle = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer, steps = scaled([one, other, idle], fused=fused), LeftOutSteps()
    for gradient in (bad, 1.0, bad, bad, 1.0, 1e30):
        before = one.detach().clone()
        one.grad, other.grad = torch.tensor([1.0, gradient]), torch.ones(2)
        if noted:
            steps.before_step(optimizer)
        unscale(optimizer)
        torch.nan_to_num_(one.grad, 1.0, 1.0, 1.0)
        optimizer.step()
        assert torch.equal(one, before) == (gradient is bad)
        assert steps.was_left_out(optimizer) == (gradient is bad)


@FUSED
def test_a_scale_that_grows_is_no_step_that_was_left_out(fused: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer, steps = scaled([parameter], fused=fused, growth_interval=2), LeftOutSteps()
    for scale in (4.0, 8.0, 8.0, 16.0):
        parameter.grad = torch.ones(2)
        unscale(optimizer)
        optimizer.step()
        assert optimizer.scaler.get_scale() == scale
        assert not steps.was_left_out(optimizer)


def test_without_a_scaler_accelerate_is_asked() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.full((2,), float("nan"))
    off, steps = scaled([parameter], fused=False, enabled=False), LeftOutSteps()
    steps.before_step(off)
    off.step()
    assert not steps.was_left_out(off)
    assert not steps.was_left_out(torch.optim.SGD([parameter]))
    assert steps.was_left_out(SimpleNamespace(step_was_skipped=True))


@pytest.mark.parametrize("method", ["adalora", "igu-lora"])
def test_scores_know_nothing_of_a_step_that_overflowed(method: str, tmp_path: Path) -> None:
    """The first and the eighth step: the same plan, whether accelerate notices or not (a schedule waits only where it does)."""
    found = []
    for optim in ("adamw_torch", "adamw_torch_fused"):
        allocation = RankAllocation(method, "r=2", **CUTS, **({"every": 1} if method == "igu-lora" else {}))
        trainer = tiny_trainer(tmp_path / optim, optim=optim, lr_scheduler_type="constant")
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        # Before it clips, as in fp16.
        trainer.accelerator.unscale_gradients = partial(unscale_all, trainer)
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


def unscale_all(trainer: Any, _: Any = None) -> None:
    unscale(trainer.optimizer)


def test_a_loop_may_say_so_of_some_steps_and_leave_the_others_to_the_scaler(tmp_path: Path) -> None:
    model = tiny_trainer(tmp_path).model
    allocation = AllocationLoop(model, "adalora", "r=2", steps=20, **CUTS)
    optimizer = scaled([p for p in model.parameters() if p.requires_grad], fused=True)
    counted = []
    for bad, said in ((False, None), (True, True), (False, None), (True, None), (False, False)):
        (model(**random_batch()).loss * optimizer.scaler.get_scale()).backward()
        if bad:
            next(p for p in model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
        unscale(optimizer)
        allocation.after_backward()
        allocation.before_step()
        optimizer.step()
        allocation.after_step(optimizer, skipped=said)
        optimizer.zero_grad()
        counted.append(allocation.step)
    assert counted == [1, 1, 2, 2, 3]


def overflow(trainer: Any, steps: tuple[int, ...]) -> None:
    """Have a gradient overflow in these steps."""
    original = trainer.training_step

    def stepped(model: nn.Module, *args: Any) -> Any:
        loss = original(model, *args)
        if trainer.state.global_step + 1 in steps:
            next(p for p in model.parameters() if p.grad is not None).grad[0, 0] = float("inf")
        return loss

    trainer.training_step = stepped
