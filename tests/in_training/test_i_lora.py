"""I-LoRA as a callback: a scoring set of the user's, a plan, and a second stage from a fresh start."""

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from tests.conftest import tiny_trainer
from tests.in_training.pruning_cases import Stop
from torch.utils.data import DataLoader
from transformers import set_seed

from lorank import ImportanceScores, RankAllocation, RankPlan
from lorank.adapter.triplet import TripletLinear
from lorank.engine.path import PathScorer
from lorank.errors import DataError, LorankWarning, RecipeError, TrainingError

STAGE: dict[str, Any] = {"max_steps": 8, "save_steps": 3, "logging_steps": 1}


def examples(count: int = 32, seed: int = 7) -> Dataset:
    ids = torch.randint(5, 21, (count, 8), generator=torch.Generator().manual_seed(seed))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids == 7).any(1).long().tolist()})


def i_lora(scoring_data: Any = None, **options: Any) -> RankAllocation:
    if scoring_data is None and options.get("source") != "training":
        scoring_data = examples()
    return RankAllocation("i-lora", "r=2", scoring_data=scoring_data, **options)


def adapter_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


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
    "kept": {"ending": "continue", "path_scope": "module", "granularity": "module", "dropout": True},
    "training": {"source": "training", "parameter_factor": "absolute", "accumulate": "last"},
}


@pytest.mark.parametrize("name", RESUMED)
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


def test_a_loader_gives_the_scores_of_its_batches_and_leaves_training_alone(tmp_path: Path) -> None:
    """Shuffled, and with a collator that draws: the same scores after a resume, and the same training as without."""

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}
        return {**batch, "attention_mask": (torch.rand(batch["input_ids"].shape) < 0.9).long()}

    def trained(folder: Path, resume: bool = False, **options: Any) -> tuple[RankAllocation, list[float]]:
        loader = DataLoader(examples(), batch_size=8, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
        allocation = i_lora(loader, **options)
        trainer = tiny_trainer(folder, allocation, **STAGE)
        trainer.train(resume_from_checkpoint=resume or None)
        return allocation, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    whole, losses = trained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", tmp_path / "again" / "checkpoint-6")
    again, _ = trained(tmp_path / "again", resume=True)
    assert again.scores.fingerprint == whole.scores.fingerprint
    _, rarely = trained(tmp_path / "rarely", every=4)
    assert rarely == losses


def test_rows_in_any_form_score_alike(tmp_path: Path) -> None:
    found = []
    data: dict[str, Any] = {
        "rows": examples(24),
        "list": list(examples(24)),
        "loader": DataLoader(examples(24).with_format("torch"), batch_size=8),  # type: ignore[arg-type]
    }
    for name, given in data.items():
        # Signed shares of equal batches are the mean over examples, in whatever order these come.
        allocation = i_lora(given, when="after", draw="sweep", intervals=2, parameter_factor="signed")
        tiny_trainer(tmp_path / name, allocation, **STAGE).train()
        found.append(allocation.scores)
    for scores in found[1:]:
        for name, values in scores.scores.items():
            assert values == pytest.approx(found[0].scores[name], rel=1e-3, abs=1e-9)


def test_the_name_of_an_eval_dataset_entry(tmp_path: Path) -> None:
    allocation = i_lora("scoring")
    trainer = tiny_trainer(tmp_path, **STAGE)
    trainer.eval_dataset = {"scoring": examples(), "other": examples(16, seed=9)}
    allocation.attach(trainer)
    trainer.train()
    assert allocation.scores.provenance["scoring_examples"] == 32
    alone = tiny_trainer(tmp_path / "alone", i_lora("scoring"), **STAGE)
    with pytest.raises(TrainingError, match=r"call allocation\.attach\(trainer\)"):
        alone.train()
    other = tiny_trainer(tmp_path / "other", **STAGE)
    other.eval_dataset = {"scoring": examples()}
    with pytest.raises(TrainingError, match=r"no entry 'scorring' \(did you mean scoring\?\)"):
        i_lora("scorring").attach(other)


def test_stage_1_ends_when_the_plan_is_stable(tmp_path: Path) -> None:
    allocation = i_lora(stop_when_stable={"share": 1.0, "window": 2, "windows": 1})
    trainer = tiny_trainer(tmp_path, allocation, **STAGE)
    trainer.train()
    assert trainer.state.global_step == 4
    assert allocation.scores.provenance["ended"] == "stable at step 4 of 8"


def test_stopped_early_the_cut_is_made_and_said(tmp_path: Path) -> None:
    allocation = i_lora()
    trainer = tiny_trainer(tmp_path, allocation, Stop(5), **STAGE)
    with pytest.warns(LorankWarning, match=r"ended at step 5, before the last cut at step 8; it is made now$"):
        trainer.train()
    assert allocation.plan.total_rank


def test_an_overlap_with_the_training_set_is_said(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **STAGE)
    rows = Dataset.from_list([*examples(29).to_list(), *trainer.train_dataset.select(range(3)).to_list()])
    i_lora(rows).attach(trainer)
    with pytest.warns(LorankWarning, match=r"^3 of 32 scoring examples are in the training data too"):
        trainer.train()


def test_a_scoring_set_that_is_too_small_is_said_with_the_standard_error(tmp_path: Path) -> None:
    allocation = i_lora(examples(2), preset="loss-per-parameter", scoring_batch_size=1, warmup=0.1, every=2)
    trainer = tiny_trainer(tmp_path, allocation, **STAGE)
    with pytest.warns(
        LorankWarning, match=r"small for this plan: after 4 scoring batches from a set of 2 examples the standard error"
    ):
        trainer.train()
    assert allocation.plan.provenance["moved_by_standard_errors"] > 0.1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"scoring_data": None}, RecipeError, "give scoring_data="),
        ({"source": "training", "scoring_data": [1]}, RecipeError, "leave scoring_data out"),
        ({"method": "igu-lora"}, RecipeError, "scoring_data is for methods with a scoring set"),
        ({"estimator": "trapezoid"}, RecipeError, "estimator: unknown option"),
        ({"preset": "official"}, RecipeError, "preset 'official' of i-lora is unknown"),
        ({"when": "after", "curve": "cubic"}, RecipeError, "leaves no scores"),
        ({"warmup": 1.0}, RecipeError, "warmup"),
    ],
)
def test_bad_options_are_refused_at_once(options: dict[str, Any], error: type[Exception], said: str) -> None:
    given: dict[str, Any] = {"method": "i-lora", "budget": "r=2", "scoring_data": examples(), **options}
    with pytest.raises(error, match=said):
        RankAllocation(**given)


@pytest.mark.parametrize(
    ("data", "options", "error", "said"),
    [
        (DataLoader([{"text": "raw"}] * 8, batch_size=4), {}, DataError, "first scoring batch cannot be computed"),
        (
            DataLoader(examples(8).remove_columns("labels").with_format("torch"), batch_size=4),  # type: ignore[arg-type]
            {},
            DataError,
            "returns no loss",
        ),
        (examples(4), {"scoring_batch_size": 8}, DataError, "4 examples, less than one batch of 8"),
        (examples().remove_columns("labels"), {}, DataError, "labels is missing"),
        (Dataset.from_dict({"text": ["one", "two"]}), {}, DataError, "eval_dataset={'scoring': rows}"),
        (iter(examples()), {}, DataError, "passed through only once"),
        (examples(), {"every": 9}, Exception, "leave none to score at"),
        ([], {}, DataError, "no examples"),
    ],
)
def test_bad_scoring_data_is_refused_before_a_step(
    data: Any, options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    trainer = tiny_trainer(tmp_path, i_lora(data, **options), **STAGE)
    with pytest.raises(error, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


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


def test_a_stage_is_not_resumed_with_other_scoring_rows(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        tiny_trainer(tmp_path, i_lora(), Stop(4, error=True), **STAGE).train()
    again = tiny_trainer(tmp_path, i_lora(examples(24, seed=8)), **STAGE)
    with pytest.raises(TrainingError, match="scoring_data has other rows"):
        again.train(resume_from_checkpoint=True)


def test_an_allocation_that_no_trainer_has_says_so() -> None:
    with pytest.raises(TrainingError, match=r"where the Trainer has this allocation \(callbacks=\[...\], or attach\)"):
        _ = i_lora().plan
