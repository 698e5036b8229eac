import copy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.conftest import triplet_model

from lorank import LorankError
from lorank.runs.prepare import prepare
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.stage import train_stage
from lorank.training.trainer import SeededOrder, StageTrainer


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
        "name": "search",
        "prepared": prepared,
        "section": recipe.deciding_stage,
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
    with pytest.raises(LorankError, match="search: the loss is not finite at step 6"):
        train_stage(**inputs, model=model)
    checkpoint = latest_checkpoint(tmp_path / "stage")
    assert checkpoint is not None
    assert read_progress(checkpoint).step == 4


def test_accumulated_gradients_train_as_one_large_batch(tiny_recipe, tmp_path) -> None:
    # In float64: Adam turns the rounding of small gradients into steps of full size.
    weights = []
    for k, (size, accumulation) in enumerate([(8, 1), (4, 2)]):
        stage = {"batch_size": size, "gradient_accumulation": accumulation, "max_steps": 4}
        inputs = stage_inputs(tiny_recipe, tmp_path / str(k), train=stage, group_by_length=False)
        model, adapter = triplet_model(dtype=torch.float64)
        train_stage(**inputs, model=model)
        weights.append(copy.deepcopy([f.detach() for f in adapter.factors("all")]))
    for a, b in zip(*weights, strict=True):
        assert torch.allclose(a, b, atol=1e-9)


def test_half_written_checkpoints_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "adapter_model.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) is None
    assert not (tmp_path / "checkpoint-8").exists()
    assert latest_checkpoint(tmp_path / "nothing") is None
