"""`on_nonfinite: skip`: a step whose loss or gradients are not finite is as if it had not been made."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from accelerate.optimizer import AcceleratedOptimizer
from peft import LoraConfig, TaskType, get_peft_model
from rich.console import Console
from safetensors.torch import load_file
from tests.conftest import tiny_config, triplet_model
from tests.test_processes import launched
from tests.training.test_trainer import stage_inputs
from torch import nn
from transformers import BertForSequenceClassification, set_seed

from lorank import LorankError, RankAllocation
from lorank.errors import LorankWarning, OutputError, TrainingError
from lorank.recipe.files import load_recipe
from lorank.runs.run import run
from lorank.training.checkpoints import latest_checkpoint, read_progress
from lorank.training.stage import train_stage
from lorank.training.trainer import StageTrainer

QUIET = Console(quiet=True)
FLAT = {"scheduler": "constant", "warmup": 0, "on_nonfinite": "skip"}
Spoil = Callable[[int, int], bool]  # whether this step's (from 1) micro-batch (from 0) is bad


class Spoiled:
    """Losses of a StageTrainer, some of them not finite; and what they were computed of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, by: float = float("nan")) -> None:
        self.batches: list[tuple[int, dict[str, Any]]] = []
        self.trainer: Any = None
        real, spoiled = StageTrainer.compute_loss, self

        def compute_loss(self: Any, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            loss = real(self, model, inputs, *args, **options)
            step = self.state.global_step + 1
            micro = sum(before == step for before, _ in spoiled.batches)
            spoiled.batches.append((step, dict(inputs)))
            spoiled.trainer = self
            return loss * by if spoil(step, micro) else loss

        monkeypatch.setattr(StageTrainer, "compute_loss", compute_loss)


def by_hand(model: nn.Module, batches: list[tuple[int, dict[str, Any]]], left_out: set[int], accumulated: int) -> Any:
    """AdamW at one rate on the steps that are not left out, as Trainer trains them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2, weight_decay=0.0)
    model.train()
    for step in sorted({step for step, _ in batches} - left_out):
        for batch in (batch for of, batch in batches if of == step):
            (model(**batch).loss / accumulated).backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("by", [float("nan"), float("inf")])
def test_weights_and_moments_are_those_of_a_training_without_the_step(
    by: float, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = Spoiled(monkeypatch, lambda step, _: step in (3, 7), by)
    inputs = stage_inputs(tiny_recipe, tmp_path, train=FLAT)
    model, _ = triplet_model(dtype=torch.float64)
    other = copy.deepcopy(model)
    with pytest.warns(
        LorankWarning, match=r"search: 2 of 10 optimizer steps were skipped, the first is step 3: their loss"
    ):
        progress = train_stage(**inputs, model=model)
    assert progress.skipped == (3, 7)
    monkeypatch.undo()
    wanted = by_hand(other, spoiled.batches, {3, 7}, 1)
    for (name, own), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-10), name
    kept = spoiled.trainer.optimizer.state_dict()["state"].values()
    for own, expected in zip(kept, wanted.state_dict()["state"].values(), strict=True):
        assert float(own["step"]) == 8
        assert torch.allclose(own["exp_avg_sq"], expected["exp_avg_sq"], rtol=1e-9)
    # The log has no NaN in it: the loss before stands in for a bad one.
    losses = [entry["loss"] for entry in spoiled.trainer.state.log_history if "loss" in entry]
    assert len(losses) == 2
    assert all(0 < loss < 10 for loss in losses)
    assert spoiled.trainer.lr_scheduler.last_epoch == 10  # the schedule goes on


def test_one_bad_micro_batch_leaves_the_whole_step_out(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = Spoiled(monkeypatch, lambda step, micro: (step, micro) == (2, 0))
    stage = {**FLAT, "batch_size": 4, "gradient_accumulation": 2, "max_steps": 4}
    inputs = stage_inputs(tiny_recipe, tmp_path, train=stage)
    model, _ = triplet_model(dtype=torch.float64)
    other = copy.deepcopy(model)
    with pytest.warns(LorankWarning, match="1 of 4 optimizer steps were skipped, the first is step 2"):
        train_stage(**inputs, model=model)
    monkeypatch.undo()
    by_hand(other, spoiled.batches, {2}, 2)
    for own, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(own, expected, rtol=0, atol=1e-10)


def test_a_gradient_that_is_not_finite_beside_a_loss_that_is(tiny_recipe: Any, tmp_path: Path) -> None:
    inputs = stage_inputs(tiny_recipe, tmp_path, train={**FLAT, "max_grad_norm": 0, "max_steps": 3})
    model, adapter = triplet_model(dtype=torch.float64)
    calls = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * float("inf") if len(calls) == 2 else gradient

    adapter.p[0].register_hook(spoil)
    with pytest.warns(LorankWarning, match="1 of 3 optimizer steps were skipped, the first is step 2"):
        train_stage(**inputs, model=model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_ten_in_a_row_end_the_stage(tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Spoiled(monkeypatch, lambda step, _: step > 4)
    inputs = stage_inputs(tiny_recipe, tmp_path, train={**FLAT, "max_steps": 20})
    said = r"10 optimizer steps in a row were skipped, up to step 14, .* is step 5; the weights or the data are bad; "
    with pytest.raises(TrainingError, match=said + r"the last checkpoint, .*checkpoint-\d+, is kept"):
        train_stage(**inputs, model=triplet_model(dtype=torch.float32)[0])
    checkpoint = latest_checkpoint(tmp_path / "stage")
    assert checkpoint is not None
    assert read_progress(checkpoint).skipped == tuple(range(5, 13))


def test_more_than_a_tenth_end_the_stage(tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Spoiled(monkeypatch, lambda step, _: step % 2 == 0)
    inputs = stage_inputs(tiny_recipe, tmp_path, train={**FLAT, "max_steps": 30})
    with pytest.raises(TrainingError, match="11 of 30 optimizer steps were skipped by step 22"):
        train_stage(**inputs, model=triplet_model(dtype=torch.float32)[0])


def test_weights_that_are_not_finite_are_never_skipped(
    tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoiled = Spoiled(monkeypatch, lambda *_: False)
    inputs = stage_inputs(tiny_recipe, tmp_path, train=FLAT)
    model, adapter = triplet_model(dtype=torch.float32)
    step = StageTrainer.training_step

    def broken(self: Any, *args: Any) -> Any:
        if self.state.global_step == 1:
            with torch.no_grad():
                adapter.lambdas[0][0] = float("nan")
        return step(self, *args)

    monkeypatch.setattr(StageTrainer, "training_step", broken)
    with pytest.raises(TrainingError, match="search: weights are not finite at step 1; no checkpoint was written"):
        train_stage(**inputs, model=model)
    assert spoiled.trainer.skips.steps == []


def allocated(inputs: dict[str, Any], method: str) -> RankAllocation:
    """Train a stage of tiny BERT in which ranks are cut; the ordinary LoRA becomes triplets and a LoRA again."""
    set_seed(1)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["query", "dense"], task_type=TaskType.SEQ_CLS)
    options: dict[str, Any] = {"i-lora": {"source": "training", "scoring_batch_size": 8, "preset": "paper"}}.get(
        method, {}
    )
    allocation = RankAllocation(method, "r=1", every=1, output_dir=inputs["directory"], **options)
    train_stage(**inputs, model=get_peft_model(base, lora), callbacks=[allocation])
    return allocation


@pytest.mark.parametrize("method", ["i-lora", "igu-lora", pytest.param("adalora", marks=pytest.mark.long)])
def test_a_skipped_step_is_no_scored_step(
    method: str, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = allocated(stage_inputs(tiny_recipe, tmp_path / "whole", train=FLAT), method)
    Spoiled(monkeypatch, lambda step, _: step in (2, 5))
    with pytest.warns(LorankWarning, match="optimizer steps were skipped, the first is step 2"):
        found = allocated(stage_inputs(tiny_recipe, tmp_path / "skipped", train=FLAT), method)
    assert all(np.isfinite(values).all() for values in found.scores.scores.values())
    counts = [each.scores.provenance["scoring_batches"] for each in (whole, found)]
    assert counts[1] == counts[0] - 2
    assert found.plan.spent <= found.plan.budget_parameters


@pytest.mark.parametrize("method", ["adalora", pytest.param("igu-lora", marks=pytest.mark.long)])
def test_a_resumed_stage_is_the_uninterrupted_one(
    method: str, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, lambda step, _: step in (3, 7))
    inputs = stage_inputs(tiny_recipe, tmp_path, train=FLAT)
    with pytest.warns(LorankWarning, match="2 of 10 optimizer steps"):
        whole = allocated(inputs, method)
    step = StageTrainer.training_step

    def killed(self: Any, *args: Any) -> Any:
        if self.state.global_step == 5:
            raise KeyboardInterrupt
        return step(self, *args)

    inputs["directory"] = tmp_path / "killed"
    with monkeypatch.context() as during:
        during.setattr(StageTrainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            allocated(inputs, method)
    with pytest.warns(LorankWarning, match="2 of 10 optimizer steps were skipped, the first is step 3"):
        again = allocated(inputs, method)
    assert again.scores.fingerprint == whole.scores.fingerprint
    ends = [tmp_path / folder / "checkpoint-10" for folder in ("stage", "killed")]
    assert [read_progress(end).skipped for end in ends] == [(3, 7), (3, 7)]
    weights = [load_file(end / "adapter_model.safetensors") for end in ends]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.long
@pytest.mark.parametrize("method", ["i-lora", "igu-lora", "adalora", "lora"])
def test_the_record_of_a_run_says_what_was_skipped(
    method: str, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, lambda step, _: step in (2, 6))
    more: dict[str, Any] = {"i-lora": {}, "lora": {"preset": None}}.get(method, {"measure": {"every": 1}})
    recipe = tiny_recipe(method=method, train={"on_nonfinite": "skip"}, baselines=["full"], **more)
    with pytest.warns(LorankWarning, match=r"2 of \d+ optimizer steps were skipped, the first is step 2"):
        results = run(recipe, tmp_path / "out", QUIET).results
    assert results[method]["skipped_steps"] == results["full"]["skipped_steps"] == [2, 6]
    if method == "i-lora":
        assert results[method]["search"]["skipped_steps"] == [2, 6]
    recorded = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]
    assert recorded == json.loads(json.dumps(dict(results)))
    assert "10 (2 skipped)" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("method", ["lora", pytest.param("i-lora", marks=pytest.mark.long)])
def test_a_run_that_stopped_goes_on_by_skipping(
    method: str, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Spoiled(monkeypatch, lambda step, _: step == 6)
    preset = {"preset": None} if method == "lora" else {}
    stops, skips = (tiny_recipe(method=method, train=stage, **preset) for stage in ({}, {"on_nonfinite": "skip"}))
    with pytest.raises(LorankError, match=r"not finite at step 6; .* go on in this one with train\.on_nonfinite=skip"):
        run(stops, tmp_path / "out", QUIET)
    with pytest.warns(LorankWarning, match="1 of 10 optimizer steps were skipped, the first is step 6"):
        found = run(skips, tmp_path / "out", QUIET).results[method]
    with pytest.warns(LorankWarning, match="1 of 10 optimizer steps were skipped"):
        whole = run(skips, tmp_path / "whole", QUIET).results[method]
    assert found["skipped_steps"] == whole["skipped_steps"] == [6]
    assert (found["metrics"], found["loss"]) == (whole["metrics"], whole["loss"])
    assert load_recipe(tmp_path / "out" / "recipe.yaml").train.on_nonfinite == "skip"
    with pytest.raises(OutputError, match=r"train\.on_nonfinite was 'skip', now 'stop'"):
        run(stops, tmp_path / "out", QUIET)


@pytest.mark.parametrize(("gradient", "overflows"), [(1.0, False), (float("inf"), True)])
def test_a_loss_scaler_leaves_the_step_out_and_lowers_its_scale_where_gradients_overflow(
    gradient: float, overflows: bool, tiny_recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Trainer calls it in fp16, which needs a GPU; with gradients that are finite the bad loss alone decides."""
    spoiled = Spoiled(monkeypatch, lambda step, _: step == 1)
    with pytest.warns(LorankWarning, match="1 of 2 optimizer steps"):
        train_stage(**stage_inputs(tiny_recipe, tmp_path, train={**FLAT, "max_steps": 2}), model=triplet_model()[0])
    trainer = spoiled.trainer
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    optimizer = AcceleratedOptimizer(torch.optim.SGD(trained, lr=1.0), scaler=scaler)
    before = [p.detach().clone() for p in trained]
    for p in trained:
        p.grad = torch.full_like(p, gradient * 1024)
    optimizer.scaler.unscale_(optimizer.optimizer)  # clipping does
    skips = trainer.skips
    skips.on_step_begin(trainer.args, trainer.state, trainer.control)
    skips.noted(torch.tensor(float("nan"), dtype=torch.float64))
    skips.on_pre_optimizer_step(trainer.args, trainer.state, trainer.control, optimizer=optimizer)
    optimizer.step()
    assert all(torch.equal(p, was) for p, was in zip(trained, before, strict=True))
    assert optimizer.step_was_skipped == overflows
    assert scaler.get_scale() == (512.0 if overflows else 1024.0)
    assert skips.steps == [1, 3]


@pytest.mark.long
def test_a_step_that_is_bad_in_one_of_two_processes_is_skipped_in_both(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(method="igu-lora", measure={"every": 1}, train={"on_nonfinite": "skip"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json", exclude={"resolved"})))
    launched("tests.training.nonfinite_on_two", str(tmp_path / "recipe.yaml"), str(tmp_path / "out"))
    assert {path.name for path in tmp_path.glob("process *")} == {"process 0", "process 1"}
