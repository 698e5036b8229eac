"""A loss that is not finite in a training of somebody's own: the error names its step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import random_batch, tiny_trainer
from tests.in_training.pruning_cases import ADALORA

from lorank import AllocationLoop, RankAllocation
from lorank.adapter.triplet import TripletAdapter
from lorank.errors import TrainingError

METHODS: dict[str, dict[str, Any]] = {
    "adalora": ADALORA,
    "igu-lora": {**ADALORA, "method": "igu-lora", "every": 1},
    "i-lora": {"method": "i-lora", "source": "training", "scoring_batch_size": 8},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_step_of_a_loss_that_is_not_finite_is_named(method: str, tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **METHODS[method])
    trainer = tiny_trainer(tmp_path, save_strategy="no")
    allocation.attach(trainer)
    compute = trainer.compute_loss

    def spoiled(*args: Any, **options: Any) -> Any:
        return compute(*args, **options) * (float("nan") if trainer.state.global_step + 1 == 3 else 1.0)

    trainer.compute_loss = spoiled
    with pytest.raises(
        TrainingError, match=r"scores are not finite at step \d+: the loss or a gradient is not since step 3; lower"
    ):
        trainer.train()


def test_no_checkpoint_of_such_scores_is_completed(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation, save_steps=3)
    gradients = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        gradients.append(gradient)
        return gradient * (float("inf") if len(gradients) == 2 else 1.0)

    TripletAdapter.of(trainer.model).lambdas[0].register_hook(spoil)
    said = r"the scores are not finite at step 3: the loss or a gradient is not since step 2; checkpoints in"
    with pytest.raises(TrainingError, match=said):
        trainer.train()


def test_a_loop_that_leaves_a_step_out_need_not_have_it_measured(tmp_path: Path) -> None:
    model = tiny_trainer(tmp_path).model
    allocation = AllocationLoop(model, "igu-lora", "r=2", steps=10, every=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    for left_out in (True, False):
        (model.train()(**random_batch()).loss * (float("nan") if left_out else 1.0)).backward()
        if left_out:
            optimizer.zero_grad()
        else:
            allocation.after_backward()
            allocation.before_step()
            optimizer.step()
        allocation.after_step(optimizer, skipped=left_out)
        optimizer.zero_grad()
    assert allocation.step == 1
    tensors = allocation.state_dict()["tensors"]
    assert all(bool(torch.isfinite(tensors[key]).all()) for key in tensors if key.startswith("smoothed/"))
    assert int(tensors["first_bad"]) == 0
    with pytest.raises(TrainingError, match="before_step was not called in this step"):
        allocation.after_step(optimizer, skipped=False)
