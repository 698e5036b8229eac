import copy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.conftest import random_batch, triplet_model
from transformers import TrainingArguments

from lorank import LorankError
from lorank.adapter.orthogonality import orthogonality
from lorank.runs.prepare import prepare
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.stage import train_stage
from lorank.training.trainer import SeededOrder, StageTrainer


def make_trainer(tmp_path: Path, weight: float = 0.1, **options) -> StageTrainer:
    model, adapter = triplet_model(dtype=torch.float32)
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    order = SeededOrder([1] * 4, 2, 0, group_by_length=False)
    trainer = StageTrainer(
        stage="stage 1",
        order=order,
        regularised=adapter,
        orthogonality_weight=weight,
        model=model,
        args=arguments,
        **options,
    )
    trainer.current_gradient_accumulation_steps = 1  # Trainer.train sets it
    return trainer


def test_the_regulariser_pulls_but_is_not_in_the_reported_loss(tmp_path: Path) -> None:
    plain, regularised = make_trainer(tmp_path, 0.0), make_trainer(tmp_path, 0.3)
    losses, gradients = [], []
    for trainer in (plain, regularised):
        losses.append(trainer.training_step(trainer.model, random_batch()))
        gradients.append([p.grad for p in trainer.regularised.factors("all")])
    assert torch.equal(losses[0], losses[1])
    pull = torch.autograd.grad(
        0.3 * orthogonality(plain.regularised), plain.regularised.factors("all"), materialize_grads=True
    )
    for a, b, extra in zip(gradients[0], gradients[1], pull, strict=True):
        assert torch.allclose(a + extra, b, atol=1e-6)
    model = regularised.model.eval()
    assert torch.equal(
        regularised.compute_loss(model, random_batch()), plain.compute_loss(plain.model.eval(), random_batch())
    )


def test_training_on_the_path_steps_from_where_the_adapters_stand(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, 0.0, path_seed=0)
    before = [p.detach().clone() for p in trainer.regularised.factors("all")]
    on_path = trainer.training_step(trainer.model, random_batch())
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.regularised.factors("all"), strict=True))
    assert not torch.equal(on_path, make_trainer(tmp_path, 0.0).training_step(trainer.model, random_batch()))


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    for grouped in (False, True):
        order = SeededOrder(list(range(50)), 5, 3, group_by_length=grouped)
        first, again = list(order), list(order)
        order.epoch = 1
        assert first == again != list(order)
        assert sorted(first) == list(range(50))
    assert first != list(SeededOrder(list(range(50)), 5, 4, group_by_length=True))


def test_examples_of_similar_length_share_a_batch() -> None:
    lengths = [k % 10 for k in range(1000)]
    indices = list(SeededOrder(lengths, 10, 0, group_by_length=True))
    spread = [
        max(lengths[i] for i in b) - min(lengths[i] for i in b)
        for b in (indices[k : k + 10] for k in range(0, 1000, 10))
    ]
    assert sum(spread) / len(spread) < 2


def stage_inputs(tiny_recipe, tmp_path: Path, **changes):
    recipe, prepared = prepare(tiny_recipe(**changes), ("i-lora",))
    return {
        "name": "stage 1",
        "prepared": prepared,
        "section": recipe.stage1,
        "directory": tmp_path / "stage",
        "rows": prepared.tokenize(prepared.data.train),
        "console": Console(quiet=True),
    }


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tiny_recipe, tmp_path, monkeypatch) -> None:
    inputs = stage_inputs(tiny_recipe, tmp_path)
    model, _ = triplet_model(dtype=torch.float32)
    real = StageTrainer.compute_loss

    def diverging(self, model, inputs, return_outputs=False, **options):
        found = real(self, model, inputs, return_outputs, **options)
        return found * float("nan") if self.state.global_step == 5 else found

    monkeypatch.setattr(StageTrainer, "compute_loss", diverging)
    with pytest.raises(LorankError, match="stage 1: the loss is not finite at step 6"):
        train_stage(**inputs, model=model)
    checkpoint = latest_checkpoint(tmp_path / "stage")
    assert checkpoint is not None
    assert read_progress(checkpoint).step == 4


def test_accumulated_gradients_train_as_one_large_batch(tiny_recipe, tmp_path) -> None:
    # In float64: Adam turns the rounding of small gradients into steps of full size.
    weights = []
    for k, (size, accumulation) in enumerate([(8, 1), (4, 2)]):
        stage = {"batch_size": size, "gradient_accumulation": accumulation, "max_steps": 4}
        inputs = stage_inputs(tiny_recipe, tmp_path / str(k), stage1=stage, group_by_length=False)
        model, adapter = triplet_model(dtype=torch.float64)
        train_stage(**inputs, model=model, regularised=adapter, orthogonality_weight=0.5)
        weights.append(copy.deepcopy([f.detach() for f in adapter.factors("all")]))
    for a, b in zip(*weights, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_half_written_checkpoints_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "adapter_model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    assert not (tmp_path / "checkpoint-8").exists()
    assert latest_checkpoint(tmp_path / "nothing") is None
