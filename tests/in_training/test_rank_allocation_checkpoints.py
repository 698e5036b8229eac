"""RankAllocation resumed, interrupted, stopped early, and with the best model loaded."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.conftest import tiny_config, tiny_trainer
from tests.in_training.pruning_cases import ADALORA, IGU, SHORT, Stop
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
)

from lorank import RankAllocation
from lorank.allocation.cut_history import CutHistory
from lorank.errors import TrainingError

RESUMED = {
    "recommended": {**IGU, "shrink": "every"},
    "adalora": ADALORA,
    "official": {**IGU, "preset": "official", **SHORT, "factors": "kept"},
    "paper-auto": {**IGU, "preset": "paper", **SHORT, "window": 3, "estimator": "trapezoid", "intervals": "auto"},
}


@pytest.mark.parametrize(
    "name",
    ["recommended", *(pytest.param(one, marks=pytest.mark.long) for one in ("adalora", "official", "paper-auto"))],
)
def test_resuming_from_any_checkpoint_is_the_uninterrupted_run(name: str, tmp_path: Path) -> None:
    """Before, within and after pruning: ranks, weights, optimizer and scores are the same to the bit."""
    more = {"gradient_accumulation_steps": 2} if name == "official" else {}
    whole = RankAllocation(budget="r=2", **RESUMED[name])
    tiny_trainer(tmp_path / "whole", whole, **more).train()
    steps = [3, 6, 9, 12, 15] if name == "recommended" else [3, 9, 15]
    for step in steps:
        folder = tmp_path / f"from {step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        again = RankAllocation(budget="r=2", **RESUMED[name])
        trainer = tiny_trainer(folder, again, **more)
        trainer.train(resume_from_checkpoint=True)
        assert again.plan == whole.plan, step
        # The Trainer's JSON sorts names; the plan's order is the model's.
        assert list(again.plan.ranks) == list(whole.plan.ranks), step
        for file in ("plan.json", "cuts.jsonl"):
            assert (folder / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), (step, file)
        assert again.scores.fingerprint == whole.scores.fingerprint, step
        for file in ("adapter_model.safetensors", "rank_allocation.safetensors", "optimizer.pt"):
            before, now = (read(place / "checkpoint-18" / file) for place in (tmp_path / "whole", folder))
            different = [key for key in before if not torch.equal(before[key], now[key])]
            assert before.keys() == now.keys(), (step, file)
            assert not different, (step, file, different)


def read(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    found = torch.load(path, weights_only=True)["state"]
    return {f"{number}.{key}": tensor for number, entry in found.items() for key, tensor in entry.items()}


def test_a_finished_training_can_be_ended_again(tmp_path: Path) -> None:
    """Killed between its last checkpoint and the fold: resuming trains nothing and folds."""
    whole = RankAllocation(budget="r=2", **ADALORA)
    first = tiny_trainer(tmp_path, whole, save_steps=10)
    first.train()
    again = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, again, save_steps=10, num_train_epochs=2, max_steps=20)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-20"))
    assert again.plan == whole.plan


def test_checkpoints_that_cannot_be_continued_say_so(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **ADALORA)).train()
    checkpoint = tmp_path / "with" / "checkpoint-9"
    with pytest.raises(TrainingError, match=r"another allocation, options: measure\.estimator was"):
        tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **IGU)).train(
            resume_from_checkpoint=str(checkpoint)
        )
    written = (checkpoint / "rank_allocation.safetensors").read_bytes()
    before = written.replace(b'"version":"3"', b'"version":"2"', 1)
    (checkpoint / "rank_allocation.safetensors").write_bytes(before)
    with pytest.raises(TrainingError, match=r"another version of lorank \(format 2, this one reads 3\)"):
        tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **ADALORA)).train(
            resume_from_checkpoint=str(checkpoint)
        )
    (checkpoint / "rank_allocation.safetensors").write_bytes(b"half a fi")
    with pytest.raises(TrainingError, match="damaged"):
        tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **ADALORA)).train(
            resume_from_checkpoint=str(checkpoint)
        )
    shutil.copy(tmp_path / "with" / "checkpoint-6" / "rank_allocation.safetensors", checkpoint)
    with pytest.raises(TrainingError, match="belongs to another checkpoint"):
        tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **ADALORA)).train(
            resume_from_checkpoint=str(checkpoint)
        )
    (checkpoint / "rank_allocation.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"no rank_allocation\.safetensors"):
        tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **ADALORA)).train(
            resume_from_checkpoint=str(checkpoint)
        )


def test_a_checkpoint_elsewhere_can_be_named(tmp_path: Path) -> None:
    whole = RankAllocation(budget="r=2", **ADALORA)
    tiny_trainer(tmp_path / "first", whole).train()
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "first" / "checkpoint-9", moved)
    again = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path / "second", again, resume_from_checkpoint=str(moved))
    trainer.train(resume_from_checkpoint=str(moved))
    assert again.plan == whole.plan


def test_a_checkpoint_of_triplets_does_not_pass_for_a_lora(tmp_path: Path) -> None:
    """Its files look like one; PEFT would load P and Q without λ."""
    trainer = tiny_trainer(tmp_path, RankAllocation(budget="r=2", **ADALORA))
    trainer.train()
    fresh = BertForSequenceClassification(tiny_config(num_labels=2))
    with pytest.raises(ValueError, match="triplets of lorank, not yet a LoRA"):
        PeftModel.from_pretrained(fresh, str(tmp_path / "checkpoint-9"))
    assert trainer.model.peft_config["default"].init_lora_weights is True
    interrupted = tiny_trainer(tmp_path / "second", RankAllocation(budget="r=2", **ADALORA), Stop(5, error=True))
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    interrupted.save_model(str(tmp_path / "rescued"))
    with pytest.raises(ValueError, match="triplets of lorank, not yet a LoRA"):
        PeftModel.from_pretrained(fresh, str(tmp_path / "rescued"))


def test_state_is_in_safetensors_and_json(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, RankAllocation(budget="r=2", **ADALORA)).train()
    saved = json.loads((tmp_path / "checkpoint-9" / "trainer_state.json").read_text())["stateful_callbacks"]
    small = saved["RankAllocation"]["attributes"]["saved"]
    assert small["measured"] == 9
    assert small["finished"] is None
    tensors = load_file(tmp_path / "checkpoint-9" / "rank_allocation.safetensors")
    ema = [tensor for key, tensor in tensors.items() if key.startswith("smoothed/") and key.count("/") == 2]
    adapter = load_file(tmp_path / "checkpoint-9" / "adapter_model.safetensors")
    count = sum(tensor.numel() for key, tensor in adapter.items() if "lora_" in key)
    assert sum(tensor.numel() for tensor in ema) == 2 * count
    assert all(tensor.dtype == torch.float32 for tensor in ema)


def test_triplet_state_is_a_few_numbers_for_each_unit(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, RankAllocation(budget="r=2", **IGU)).train()
    tensors = load_file(tmp_path / "checkpoint-9" / "rank_allocation.safetensors")
    units = 4 * 10
    assert (
        sum(t.numel() for key, t in tensors.items() if key.startswith("smoothed/") and key.count("/") == 2) == 2 * units
    )


def test_the_best_model_is_one_within_the_budget(tmp_path: Path) -> None:
    """Evaluations before the last cut are of larger models: they do not compete."""
    options = {
        "eval_strategy": "steps",
        "eval_steps": 3,
        "load_best_model_at_end": True,
        "metric_for_best_model": "loss",
    }
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation, **options)
    trainer.train()
    assert int(trainer.state.best_model_checkpoint.rpartition("-")[2]) >= 12
    found = sum(p.numel() for name, p in trainer.model.named_parameters() if "lora_" in name)
    assert found == allocation.plan.spent


def test_no_patience_is_lost_before_the_last_cut(tmp_path: Path) -> None:
    """Every evaluation is called worse than the best; patience counts from the last cut on."""
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    allocation = RankAllocation(budget="r=2", **ADALORA)
    patience = EarlyStoppingCallback(2, early_stopping_threshold=100.0)
    trainer = tiny_trainer(tmp_path, allocation, patience, metric_for_best_model="loss", save_total_limit=1, **options)
    trainer.train()
    # The first evaluation within the budget is that of step 12; two more are not 100 better.
    assert trainer.state.global_step == 14
    assert allocation.plan.provenance["last_cut"] == 12
    assert int(trainer.state.best_model_checkpoint.rpartition("-")[2]) >= 12


def test_a_folded_adapter_does_not_take_a_checkpoint_of_triplets(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, RankAllocation(budget="r=2", **ADALORA))
    trainer.train()
    with pytest.raises(TrainingError, match="resume with a new model"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))


def test_an_interrupted_training_is_resumed_and_not_begun_again(tmp_path: Path) -> None:
    stop = Stop(14, error=True)
    allocation = RankAllocation(budget="r=2", **IGU)
    trainer = tiny_trainer(tmp_path, allocation, stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer.model._forward_pre_hooks  # nothing listens after the last cut
    stop.step = 0
    with pytest.raises(TrainingError, match="has cut this adapter already"):
        trainer.train()
    interrupted = CutHistory.load(tmp_path / "cuts.jsonl")
    assert [cut.step for cut in interrupted.cuts] == [6, 8, 10, 12]  # the last checkpoint is that of step 12
    (tmp_path / "cuts.jsonl").open("a").write('{"step":13,"ra')  # killed while it wrote a line
    trainer.train(resume_from_checkpoint=True)
    whole = RankAllocation(budget="r=2", **IGU)
    tiny_trainer(tmp_path / "whole", whole).train()
    assert allocation.plan == whole.plan
    assert (tmp_path / "cuts.jsonl").read_bytes() == (tmp_path / "whole" / "cuts.jsonl").read_bytes()


def test_a_training_can_be_made_longer_after_the_last_cut(tmp_path: Path) -> None:
    first = RankAllocation(budget="r=2", **ADALORA)
    tiny_trainer(tmp_path, first).train()
    longer = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, longer, max_steps=25)
    with pytest.raises(TrainingError, match="schedule of cuts"):
        tiny_trainer(tmp_path, RankAllocation(budget="r=2", **ADALORA), max_steps=25).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-9")
        )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-15"))
    assert trainer.state.global_step == 25
    assert longer.plan.ranks == first.plan.ranks


def test_a_fresh_start_is_the_same_after_resuming(tmp_path: Path) -> None:
    found = []
    for resumed in (None, 9, 12):
        allocation = RankAllocation(budget="r=2", factors="fresh", **IGU)
        trainer = tiny_trainer(tmp_path, allocation)
        trainer.train(resume_from_checkpoint=resumed and str(tmp_path / f"checkpoint-{resumed}"))
        trained = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        found.append((allocation.plan, trained))
    for plan, trained in found[1:]:
        assert plan == found[0][0]
        assert all(torch.equal(value, found[0][1][name]) for name, value in trained.items())
    # The callback takes no part in the second training.
    second = tiny_trainer(tmp_path / "second", allocation, model=trainer.model)
    second.train()
    assert second.state.global_step == 20


def test_callbacks_are_not_to_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="restores itself"):
        tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2"), restore_callback_states_from_checkpoint=True)


def test_a_checkpoint_in_the_middle_of_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"enable_jit_checkpoint .* set it to False and save often"):
        tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2"), enable_jit_checkpoint=True)
