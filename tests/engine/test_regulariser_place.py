"""Where the regulariser's gradient is added, under tight clipping: before and after, worked out by hand in float64."""

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, TaskType, get_peft_model
from tests.conftest import random_batch, tiny_config
from tests.engine.test_allocator import allocator, triplets
from transformers import BertForSequenceClassification, set_seed

from lorank.allocation.schedule import CutSchedule

GAMMA, NORM = 0.7, 0.01


@pytest.mark.parametrize("method", ["adalora", "igu-lora"])
@pytest.mark.parametrize("place", ["before-clipping", "after-clipping"])
def test_gradients_are_those_worked_out_by_hand(method: str, place: str) -> None:
    """With rank 1, `‖PᵀP - I‖_F = |s - 1|` with s = ‖P‖²: its gradient is `2 sign(s - 1) P`, a mean over all P and Q."""
    options = {"orthogonality": GAMMA, "orthogonality_added": place, "estimator": "training-pass", "every": 1}
    model, adapter = triplets(rank=1)
    ours = allocator(model, adapter, method, CutSchedule(5, 20, 5), "r=1", **options)
    factors = adapter.factors("all")
    generator = torch.Generator().manual_seed(0)
    loss, pull = [], []
    for number, factor in enumerate(factors):
        is_lambda = number < len(adapter.names)
        with torch.no_grad():
            factor.copy_(torch.randn(factor.shape, generator=generator, dtype=torch.float64) * 0.2)
        factor.grad = torch.randn(factor.shape, generator=generator, dtype=torch.float64)
        loss.append(factor.grad.clone())
        square = float((factor.detach() ** 2).sum())
        matrices = 2 * len(adapter.names)
        away = 2.0 if square > 1 else -2.0
        pull.append(0 * factor.detach() if is_lambda else GAMMA * away * factor.detach() / matrices)

    def clipped(gradients: list[torch.Tensor]) -> list[torch.Tensor]:
        norm = sum(float((g**2).sum()) for g in gradients) ** 0.5
        assert norm > NORM
        return [g * (NORM / (norm + 1e-6)) for g in gradients]

    if place == "before-clipping":
        expected = clipped([g + p for g, p in zip(loss, pull, strict=True)])
    else:
        expected = [g + p for g, p in zip(clipped(loss), pull, strict=True)]

    ours.begin_step(1)
    ours.after_backward(1)
    torch.nn.utils.clip_grad_norm_(factors, NORM)
    ours.before_step(1)
    for factor, gradient in zip(factors, expected, strict=True):
        assert torch.allclose(factor.grad, gradient, rtol=1e-12, atol=1e-15)
    # The two places differ by far more than rounding.
    assert max(float(p.abs().max()) for p in pull) > 10 * NORM / len(factors)


def peft_loss(batch: dict[str, torch.Tensor], **task: Any) -> tuple[float, float, float]:
    """Loss that PEFT's AdaLoRA returns, the base model's own, and the regulariser by its formula."""
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2))
    config = AdaLoraConfig(init_r=3, target_r=1, total_step=10, target_modules=["query"], orth_reg_weight=0.5, **task)
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        own = float(base(**batch).loss)  # layers have E = 0, so the adapter adds nothing to the logits
        norms = [
            torch.linalg.matrix_norm((p @ p.T if "lora_A" in name else p.T @ p) - torch.eye(3))
            for name, p in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
        ]
        return float(model(**batch).loss), own, float(torch.stack(norms).mean())


def test_peft_regularises_only_models_with_a_task_type() -> None:
    """A PeftModel without task type calls the base model itself, past the AdaLoraModel that adds the regulariser."""
    batch = random_batch()
    loss, own, regulariser = peft_loss(batch, task_type=TaskType.SEQ_CLS)
    assert loss == pytest.approx(own + 0.5 * regulariser, rel=1e-6)
    assert regulariser > 0.1
    loss, own, _ = peft_loss(batch)
    assert loss == own
