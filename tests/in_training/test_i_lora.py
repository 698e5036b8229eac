"""I-LoRA as a callback: a scoring set of the user's, a plan, and a second stage from a fresh start."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from tests.conftest import tiny_config, tiny_trainer
from tests.in_training.i_lora_cases import STAGE, adapter_of, examples, i_lora
from tests.in_training.pruning_cases import Stop
from transformers import BertForSequenceClassification, set_seed

from lorank import ImportanceScores, RankAllocation, RankPlan
from lorank.adapter.triplet import TripletLinear
from lorank.engine.path import PathScorer
from lorank.errors import AdapterError, LorankWarning, TrainingError
from lorank.module_names import without_adapter


@pytest.mark.parametrize("preset", ["paper", "loss-per-parameter"])
def test_two_stages_in_a_plain_trainer(preset: str, tmp_path: Path) -> None:
    allocation = i_lora(preset=preset)
    first = tiny_trainer(tmp_path, allocation, **STAGE)
    heads = {n: p.detach().clone() for n, p in first.model.named_parameters() if p.requires_grad and "lora" not in n}
    assert heads
    first.train()
    plan, scores = allocation.plan, allocation.scores
    assert plan == RankPlan.load(tmp_path / "plan.json")
    assert 0 < plan.spent <= plan.budget_parameters
    assert scores.fingerprint == ImportanceScores.load(tmp_path / "scores.safetensors").fingerprint
    assert scores.standard_errors is not None
    assert scores.provenance["scoring_batches"] == (8 if preset == "paper" else 4)  # warm-up 0.1 and 0.5 of 8 steps
    assert scores.provenance["scoring_examples"] == 32
    assert (scores.provenance["loss_reduction"] is not None) == (preset == "loss-per-parameter")
    assert scores.provenance["ended"] == "all steps done"
    # The plan's adapter at a fresh start, and what trained beside it as before.
    assert not any(isinstance(module, TripletLinear) for module in first.model.modules())
    fresh = adapter_of(first.model)
    assert all(torch.equal(fresh[name], value) for name, value in heads.items())
    assert not any(value.any() for name, value in fresh.items() if "lora_B" in name)
    second = tiny_trainer(tmp_path / "second", model=first.model, max_steps=4)
    second.train()
    assert any(value.any() for name, value in adapter_of(second.model).items() if "lora_B" in name)
    assert sum(v.numel() for name, v in adapter_of(second.model).items() if "lora_" in name) == plan.spent


RESUMED: dict[str, dict[str, Any]] = {
    "paper": {},
    "loss-per-parameter": {"preset": "loss-per-parameter", "baseline": "initial", "moved": "all"},
    "after": {"when": "after", "draw": "sweep", "intervals": 3},
    "cubic": {"curve": "cubic", "interval": 1, "accumulate": "ema", "train_on_path": True},
    "kept": {"factors": "kept", "path_scope": "module", "granularity": "module", "dropout": True},
    "training": {"source": "training", "parameter_factor": "absolute", "accumulate": "last"},
}


@pytest.mark.parametrize(
    "name",
    [n if n == "loss-per-parameter" else pytest.param(n, marks=pytest.mark.long) for n in RESUMED],
)
def test_both_stages_resume_exactly(name: str, tmp_path: Path) -> None:
    def both(folder: Path, resume: bool) -> tuple[RankAllocation, dict[str, torch.Tensor]]:
        allocation = i_lora(**RESUMED[name])
        first = tiny_trainer(folder / "first", allocation, **STAGE)
        first.train(resume_from_checkpoint=resume or None)
        second = tiny_trainer(folder / "second", model=first.model, max_steps=4, save_steps=2)
        second.train(resume_from_checkpoint=resume or None)
        return allocation, adapter_of(second.model)

    whole, weights = both(tmp_path / "whole", False)
    for step in (3, 6):
        folder = tmp_path / f"from {step}"
        for stage, kept in (("first", step), ("second", 2)):
            name_of = f"checkpoint-{kept}"
            shutil.copytree(tmp_path / "whole" / stage / name_of, folder / stage / name_of)
        again, found = both(folder, True)
        assert again.plan == whole.plan
        assert again.scores.fingerprint == whole.scores.fingerprint
        assert all(torch.equal(found[key], value) for key, value in weights.items())


def test_stage_1_ends_when_the_plan_is_stable(tmp_path: Path) -> None:
    allocation = i_lora(stop_when_stable={"share": 1.0, "window": 2, "windows": 1})
    trainer = tiny_trainer(tmp_path, allocation, **STAGE)
    trainer.train()
    assert trainer.state.global_step == 4
    assert allocation.scores.provenance["ended"] == "stable at step 4 of 8"


def test_stopped_early_the_cut_is_made_and_said(tmp_path: Path) -> None:
    allocation = i_lora()
    trainer = tiny_trainer(tmp_path, allocation, Stop(5), **STAGE)
    with pytest.warns(LorankWarning, match=r"ended at step 5 without the last cut, due at step 8; it is made now$"):
        trainer.train()
    assert allocation.plan.total_rank


def test_the_seed_decides(tmp_path: Path) -> None:
    found = []
    for k, seed in enumerate((3, 3, 4)):
        allocation = i_lora()
        set_seed(0)
        trainer = tiny_trainer(tmp_path / str(k), allocation, **{**STAGE, "seed": seed})
        trainer.train()
        found.append(np.concatenate(list(allocation.scores.scores.values())))
    assert np.array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_running_statistics_go_back_too(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **STAGE)
    trainer.model.get_base_model().norm = torch.nn.BatchNorm1d(16)
    pooled = trainer.model.get_base_model().bert.pooler
    forward = pooled.forward
    pooled.forward = lambda hidden: trainer.model.get_base_model().norm(forward(hidden))
    before = copy.deepcopy(dict(trainer.model.get_base_model().norm.named_buffers()))
    i_lora().attach(trainer)
    trainer.train()
    after = dict(trainer.model.get_base_model().norm.named_buffers())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert load_file(tmp_path / "checkpoint-3" / "rank_allocation.safetensors")


def test_scores_do_not_see_the_gain_of_training_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout the model scores in train mode (A14), where the output is scaled while it trains on the path (A11)."""
    gains: list[set[float]] = []
    scored = PathScorer.batch_scores

    def spied(self: PathScorer, *arguments: Any) -> torch.Tensor:
        gains.append({layer.training_gain for layer in self.adapter.layers})
        return scored(self, *arguments)

    monkeypatch.setattr(PathScorer, "batch_scores", spied)
    tiny_trainer(tmp_path, i_lora(train_on_path=True, dropout=True), **STAGE).train()
    assert gains == [{1.0}] * 8


def test_moved_shares_are_logged(tmp_path: Path) -> None:
    allocation = i_lora(stop_when_stable={"share": 1.0, "window": 2, "windows": 2})
    trainer = tiny_trainer(tmp_path, allocation, **STAGE)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rank_allocation/moved_share" in entry]
    assert [entry["step"] for entry in logged] == [4, 6]
    assert [entry["rank_allocation/moved_share"] for entry in logged] == allocation.allocator.changes.moved_shares
    assert logged[-1]["rank_allocation/total_rank"] == allocation.plan.total_rank


def test_a_resumed_stage_goes_back_to_the_start_of_the_first_process(tmp_path: Path) -> None:
    """Heads, and the baseline of the path, are in the checkpoint: a second process may have drawn others."""

    def both(folder: Path, resume: bool) -> tuple[RankAllocation, dict[str, torch.Tensor]]:
        trainer = tiny_trainer(folder, **STAGE)
        if resume:
            with torch.no_grad():
                for parameter in trainer.model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.1 * torch.randn_like(parameter))
                for name, parameter in trainer.model.named_parameters():
                    if "lora_B" in name:
                        parameter.zero_()
        allocation = i_lora(baseline="initial", moved="all", parameter_factor="signed").attach(trainer)
        trainer.train(resume_from_checkpoint=resume or None)
        return allocation, adapter_of(trainer.model)

    whole, weights = both(tmp_path / "whole", False)
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "again" / "checkpoint-3")
    again, found = both(tmp_path / "again", True)
    assert again.scores.fingerprint == whole.scores.fingerprint
    assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_an_allocation_that_no_trainer_has_says_so() -> None:
    with pytest.raises(TrainingError, match=r"where the Trainer has this allocation \(callbacks=\[...\], or attach\)"):
        _ = i_lora().plan


def test_the_trainer_of_stage_1_is_not_that_of_stage_2(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, i_lora(), **STAGE)
    trainer.train()
    with pytest.raises(TrainingError, match="make a new Trainer for stage 2"):
        trainer.train()


def test_a_half_trained_adapter_is_not_begun_with(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, i_lora(), Stop(4, error=True), **STAGE)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(TrainingError, match="part of an allocation that has not ended"):
        tiny_trainer(tmp_path, i_lora(), model=trainer.model, **STAGE)


def test_another_trainings_state_file_is_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        tiny_trainer(tmp_path / folder, i_lora(), **STAGE).train()
    file = "checkpoint-3/rank_allocation.safetensors"
    shutil.copy(tmp_path / "two" / file, tmp_path / "one" / file)
    with pytest.raises(TrainingError, match="belongs to another checkpoint"):
        tiny_trainer(tmp_path / "one", i_lora(), **STAGE).train(
            resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-3")
        )
    with pytest.raises(TrainingError, match="written with seed 3, this is 4"):
        tiny_trainer(tmp_path / "two", i_lora(), **{**STAGE, "seed": 4}).train(resume_from_checkpoint=True)


def test_biases_go_back_also_where_no_adapter_is_left(tmp_path: Path) -> None:
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
    lora = {"r": 4, "target_modules": ["query", "value", "dense"], "task_type": "SEQ_CLS"}
    before = {name: p.detach().clone() for name, p in base.named_parameters() if name.endswith("bias")}
    allocation = RankAllocation("i-lora", "r=1", scoring_data=examples())
    trainer = tiny_trainer(tmp_path, allocation, model=get_peft_model(base, LoraConfig(bias="all", **lora)), **STAGE)
    trainer.train()
    assert 0 in allocation.plan.ranks.values()
    after = {without_adapter(name): p for name, p in trainer.model.get_base_model().named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items() if name in after)
    with pytest.raises(AdapterError, match="bias='lora_only'"):
        tiny_trainer(
            tmp_path, i_lora(), model=get_peft_model(base.__class__(base.config), LoraConfig(bias="lora_only", **lora))
        )


def test_a_frozen_adapter_stays_frozen(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **STAGE)
    trainer.model.add_adapter("frozen", LoraConfig(r=2, target_modules=["query"], init_lora_weights=False))
    allocation = RankAllocation("i-lora", "r=1", scoring_data=examples()).attach(trainer)
    trainer.train()
    assert any(rank == 0 for name, rank in allocation.plan.ranks.items() if "query" in name)
    assert not any(p.requires_grad for name, p in trainer.model.named_parameters() if ".frozen." in name)
