"""RankAllocation in a real Trainer."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.conftest import random_batch, tiny_config, tiny_trainer
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
    set_seed,
)

from lorank import ImportanceScores, LorankError, RankAllocation, RankPlan
from lorank.adapter.triplet import TripletAdapter, TripletLinear
from lorank.errors import AdapterError, AllocationError, BudgetError, LorankWarning, RecipeError, TrainingError

# A window from step 4 to 12 of 20, and scores often enough for it.
SHORT: dict[str, Any] = {"begin": 0.2, "end": 0.6, "interval": 0.1}
IGU = {"method": "igu-lora", "every": 1, **SHORT}
ADALORA = {"method": "adalora", **SHORT}


class Watch(TrainerCallback):
    """Logits on a fixed batch just before training ends, and what each step saw."""

    def __init__(self) -> None:
        self.ranks: list[tuple[int, ...]] = []
        self.logits = torch.empty(0)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        adapter = TripletAdapter.of(model)
        self.ranks.append(adapter.ranks)
        if state.global_step == state.max_steps:
            self.logits = logits(model)
            model.train()


class Stop(TrainerCallback):
    """Ends training at a step, as early stopping does or as Ctrl-C does."""

    def __init__(self, step: int, *, error: bool = False) -> None:
        self.step, self.error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            if self.error:
                raise KeyboardInterrupt
            control.should_training_stop = True


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**random_batch()).logits


@pytest.mark.parametrize(
    "options",
    [
        IGU,
        ADALORA,
        {**IGU, "preset": "paper", "window": 2},
        {
            **IGU,
            "estimator": "trapezoid",
            "intervals": "auto",
            "path_scope": "layer",
            "state": "element",
            "shrink": "every",
        },
        {**IGU, "estimator": "unbiased", "intervals": 4, "moved": "all", "sign": "loss-reduction", "score": "ucb"},
        {**IGU, "preset": "official", **SHORT, "ending": "continue", "sign": "window"},
    ],
    ids=["igu-lora", "adalora", "igu-lora-paper", "trapezoid", "unbiased", "official"],
)
def test_one_callback_makes_a_compact_lora_of_the_same_function(options: dict[str, Any], tmp_path: Path) -> None:
    allocation, watch = RankAllocation(budget="r=2", **options), Watch()
    trainer = tiny_trainer(tmp_path, allocation, watch)
    trainer.train()
    plan = allocation.plan
    assert plan is not None
    assert plan == RankPlan.load(tmp_path / "plan.json")
    assert plan.spent <= plan.budget_parameters
    assert len(set(plan.ranks.values())) > 1
    assert allocation.scores.fingerprint == ImportanceScores.load(tmp_path / "scores.safetensors").fingerprint
    assert plan.provenance["scores"] == allocation.scores.fingerprint
    assert (tmp_path / "ranks.png").stat().st_size > 10_000
    # Real shrinking: at the last cut, or at every cut.
    assert watch.ranks[0] == (4,) * len(plan.ranks)
    assert watch.ranks[11:] == [tuple(plan.ranks.values())] * 9
    assert (watch.ranks[9] != watch.ranks[0]) == (options.get("shrink") == "every")
    # Folded: nothing of lorank is left in the model, and the function is the same.
    assert not any(isinstance(module, TripletLinear) for module in trainer.model.modules())
    assert torch.allclose(logits(trainer.model), watch.logits, rtol=1e-5, atol=1e-6)
    trainer.save_model(str(tmp_path / "final"))
    assert "lambda" not in "".join(load_file(tmp_path / "final" / "adapter_model.safetensors"))
    set_seed(0)
    fresh = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "final"))
    assert torch.allclose(logits(loaded), watch.logits, rtol=1e-5, atol=1e-6)
    merged = loaded.merge_and_unload()
    assert torch.allclose(logits(merged), watch.logits, rtol=1e-4, atol=1e-5)


RESUMED = {
    "recommended": {**IGU, "shrink": "every"},
    "adalora": ADALORA,
    "official": {**IGU, "preset": "official", **SHORT, "ending": "continue"},
    "paper-auto": {**IGU, "preset": "paper", **SHORT, "window": 3, "estimator": "trapezoid", "intervals": "auto"},
}


@pytest.mark.parametrize("name", RESUMED)
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
    with pytest.raises(TrainingError, match="another allocation, options: estimator was"):
        tiny_trainer(tmp_path / "with", RankAllocation(budget="r=2", **IGU)).train(
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
    ema = [tensor for key, tensor in tensors.items() if key.startswith("smoothed/")]
    adapter = load_file(tmp_path / "checkpoint-9" / "adapter_model.safetensors")
    count = sum(tensor.numel() for key, tensor in adapter.items() if "lora_" in key)
    assert sum(tensor.numel() for tensor in ema) == 2 * count
    assert all(tensor.dtype == torch.float32 for tensor in ema)


def test_triplet_state_is_a_few_numbers_for_each_unit(tmp_path: Path) -> None:
    tiny_trainer(tmp_path, RankAllocation(budget="r=2", **IGU)).train()
    tensors = load_file(tmp_path / "checkpoint-9" / "rank_allocation.safetensors")
    units = 4 * 10
    assert sum(t.numel() for key, t in tensors.items() if key.startswith("smoothed/")) == 2 * units


def test_cuts_are_logged(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Reporter(TrainerCallback):
        """Stands for report_to: Trainer puts those before the user's callbacks."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(dict(logs))

    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, Reporter(), allocation)
    trainer.train()
    cuts = [logs for logs in seen if "rank_allocation/total_rank" in logs]
    assert [logs["rank_allocation/step"] for logs in cuts] == [10, 12]
    assert cuts[-1]["rank_allocation/parameters"] == allocation.plan.spent
    assert cuts[-1]["rank_allocation/total_rank"] == allocation.plan.total_rank
    assert cuts[0]["rank_allocation/modules_changed"] > 0
    assert all(isinstance(value, (int, float)) for logs in cuts for value in logs.values())
    assert any("rank_allocation/budget" in entry for entry in trainer.state.log_history)


def test_retrain_ends_at_the_last_cut_with_a_fresh_start(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", ending="retrain", **ADALORA)
    set_seed(0)
    trainer = tiny_trainer(tmp_path, allocation)
    head = copy.deepcopy(trainer.model.get_base_model().classifier.modules_to_save["default"].weight)
    trainer.train()
    assert trainer.state.global_step == 12
    base = trainer.model.get_base_model()
    assert torch.equal(base.classifier.modules_to_save["default"].weight, head)
    lora = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
    assert not any(parameter.any() for parameter in lora)
    assert sum(parameter.shape[1] for parameter in lora) == allocation.plan.total_rank
    second = tiny_trainer(tmp_path / "second", model=trainer.model)
    second.train()
    assert any(parameter.any() for name, parameter in trainer.model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_optimizer_steps_are_counted_not_micro_batches(accumulation: int, tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **IGU)
    tiny_trainer(tmp_path, allocation, gradient_accumulation_steps=accumulation, max_steps=15).train()
    assert allocation.scores.provenance["scoring_batches"] == 8  # steps 1 to 8; the last cut is at 0.6 · 15 = 9
    assert allocation.plan.provenance["last_cut"] == 9


def test_training_is_undisturbed_until_the_first_cut(tmp_path: Path) -> None:
    """Scoring passes leave weights, gradients, dropout and random streams as they were."""

    def trained(folder: str, **options: Any) -> list[float]:
        trainer = tiny_trainer(
            tmp_path / folder, RankAllocation(budget="r=2", begin=10, end=12, **options), logging_steps=1
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry][:10]

    quiet = trained("adalora", method="adalora", state="triplet")
    for estimator in ("single-pass", "trapezoid"):
        assert trained(estimator, method="igu-lora", estimator=estimator, intervals=2, every=2) == quiet


def test_the_gradient_of_the_regulariser_is_added_and_its_loss_is_not(tmp_path: Path) -> None:
    """Eval loss with and without regulariser is the same number for the same weights, and so is the training loss."""
    losses = {}
    for gamma in (0.0, 0.5):
        allocation = RankAllocation(budget="r=2", orthogonality=gamma, initial_lambda=0.3, **IGU)
        trainer = tiny_trainer(tmp_path / str(gamma), allocation, logging_steps=1, learning_rate=0.0)
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        losses[gamma] = before, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0.0] == losses[0.5]
    assert len(losses[0.0][1]) == 20


@pytest.mark.parametrize(
    "options", [{"bf16": True}, {"gradient_checkpointing": True}, {"max_grad_norm": 0.0}, {"max_grad_norm": 1e-3}]
)
def test_works_with(options: dict[str, Any], tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **IGU)
    trainer = tiny_trainer(tmp_path, allocation, **options)
    trainer.train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_gpt2_with_conv1d_and_an_adapter_beside_that_is_frozen(tmp_path: Path) -> None:
    set_seed(0)
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, pad_token_id=0, num_labels=2, n_positions=16)
    lora = LoraConfig(r=4, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    model = get_peft_model(GPT2ForSequenceClassification(config), lora)
    model.add_adapter(
        "frozen", LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    )
    model.base_model.set_adapter(["default", "frozen"])
    model.set_requires_grad("frozen", False)
    frozen = {name: p.clone() for name, p in model.named_parameters() if ".frozen." in name}
    allocation = RankAllocation(budget="r=2", **ADALORA)
    tiny_trainer(tmp_path, allocation, model=model).train()
    assert len(allocation.plan.ranks) == 4
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    assert model.peft_config["frozen"].r == 2


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


def test_stopping_early_makes_the_last_cut_then(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation, Stop(7))
    with pytest.warns(LorankWarning, match="ended at step 7, before the last cut at step 12"):
        trainer.train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters


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


def test_training_that_never_scored_ends_with_an_error(tmp_path: Path) -> None:
    allocation = RankAllocation("igu-lora", "r=2", every=5, **SHORT)
    trainer = tiny_trainer(tmp_path, allocation, Stop(1))
    with pytest.raises(TrainingError, match="before there was anything to allocate by"):
        trainer.train()
    assert not trainer.model._forward_pre_hooks


def test_few_scores_are_worth_a_warning(tmp_path: Path) -> None:
    with pytest.warns(LorankWarning, match="decided by 2 scored mini-batches"):
        tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2", every=5, **SHORT)).train()


def test_one_allocation_is_for_one_model(tmp_path: Path) -> None:
    """In a loop over seeds the second model would be a plain LoRA."""
    allocation = RankAllocation(budget="r=2", **ADALORA)
    tiny_trainer(tmp_path / "first", allocation).train()
    with pytest.raises(TrainingError, match="make a new one for each model"):
        tiny_trainer(tmp_path / "second", allocation)
    with pytest.raises(TrainingError, match="two RankAllocation callbacks"):
        tiny_trainer(tmp_path, RankAllocation(budget="r=2", **ADALORA), RankAllocation(budget="r=2", **IGU))


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
    trainer.train(resume_from_checkpoint=True)
    whole = RankAllocation(budget="r=2", **IGU)
    tiny_trainer(tmp_path / "whole", whole).train()
    assert allocation.plan == whole.plan


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
        allocation = RankAllocation(budget="r=2", ending="retrain", **IGU)
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


def test_nothing_waits_for_the_device_but_a_cut(tmp_path: Path) -> None:
    """Reads of single numbers from tensors, which wait for a GPU: none in lorank's hooks on a step without a cut."""
    reads: dict[int, int] = {}

    class Trap(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            reads[step] += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    for options in (IGU, ADALORA, {**IGU, "preset": "official", **SHORT}):
        allocation = RankAllocation(budget="r=2", **options)
        for name in ("on_step_begin", "on_pre_optimizer_step", "on_optimizer_step", "on_step_end"):
            inner = getattr(allocation, name)

            def trapped(args: Any, state: Any, control: Any, inner: Any = inner, **known: Any) -> None:
                nonlocal step
                step = state.global_step
                reads.setdefault(step, 0)
                with Trap():
                    inner(args, state, control, **known)

            setattr(allocation, name, trapped)
        reads.clear()
        step = 0
        tiny_trainer(tmp_path / str(options.get("preset")), allocation).train()
        cuts = {5, 7, 9, 11}  # steps 6, 8, 10 and 12, counted from 0
        assert {step for step, count in reads.items() if count} <= cuts


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    """A Trainer that computes its own loss takes the labels away before the model is called: said clearly, and early."""
    with pytest.raises(TrainingError, match="label smoothing takes the labels away"):
        tiny_trainer(tmp_path, RankAllocation(budget="r=2", **IGU), label_smoothing_factor=0.1).train()
    trainer = tiny_trainer(tmp_path, RankAllocation(budget="r=2", **IGU))
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean()
    with pytest.raises(TrainingError, match="the Trainer computes its own"):
        trainer.train()
    allocation = RankAllocation(budget="r=2", **{**IGU, "estimator": "training-pass"})
    tiny_trainer(tmp_path, allocation, label_smoothing_factor=0.1).train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters


def test_a_plan_is_made_once(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation)
    trainer.train()
    plan = allocation.plan
    trainer.train()  # goes on with the plain LoRA
    assert allocation.plan is plan


def test_an_optimizer_of_ones_own(tmp_path: Path) -> None:
    model = tiny_trainer(tmp_path).model
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation, model=model)
    trainer.optimizer, trainer.lr_scheduler = optimizer, scheduler
    with pytest.raises(TrainingError, match=r"call\s+RankAllocation.prepare"):
        trainer.train()
    model = tiny_trainer(tmp_path).model
    allocation = RankAllocation(budget="r=2", **ADALORA)
    allocation.prepare(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    trainer = tiny_trainer(tmp_path, allocation, model=model)
    trainer.optimizer, trainer.lr_scheduler = optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    trainer.train()
    assert allocation.plan is not None


def test_the_callback_must_come_with_the_trainer(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.add_callback(RankAllocation(budget="r=2", **ADALORA))
    with pytest.raises(TrainingError, match="constructor"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "igulora"}, RecipeError, r"did you mean igu-lora\?"),
        ({"method": "i-lora"}, RecipeError, "does not allocate while it trains"),
        ({"preset": "offical"}, RecipeError, r"did you mean official\?"),
        ({"estimater": "trapezoid"}, RecipeError, r"estimater: unknown option \(did you mean estimator\?\)"),
        ({"estimator": "simpson"}, RecipeError, "estimator: Input should be"),
        ({"begin": 1.5}, RecipeError, "begin"),
        ({"cost_weights": {"dense": 2.0}}, RecipeError, "budget_in: ranks"),
        ({"method": "adalora", "max_rank": 3}, RecipeError, "budget_in: parameters"),
        ({"fill": False}, RecipeError, "fill"),
        ({"budget": "lots"}, BudgetError, "cannot be read"),
        ({"budget": "r=5"}, BudgetError, r"starts with .*rank 4"),
        ({"budget": "3"}, BudgetError, "below one unit"),
        ({"min_rank": 3, "budget": "r=2"}, AllocationError, "min_rank"),
        ({"min_rank": 3, "preset": "paper"}, AllocationError, "min_rank 3 alone costs"),
        ({"min_rank": 5, "preset": "paper"}, AllocationError, "only 4 scored units"),
        ({"budget": "rank=0.9", "preset": "paper"}, BudgetError, "no unit of rank|below one unit"),
        ({"preset": "paper", "cost_weights": {"up_proj": 2.0}}, AllocationError, "no adapted module"),
        ({"begin": 0.6, "end": 0.5}, RecipeError, "not before end"),
        ({"interval": 0}, RecipeError, "interval is 0"),
        ({"end": 1.5}, RecipeError, r"^end: .* or .*\(got 1\.5\)$"),
        ({"window": "epochs"}, RecipeError, "^window: [^\n]*epoch"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(
    options: dict[str, Any], error: type[LorankError], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        tiny_trainer(tmp_path, RankAllocation(**{"method": "igu-lora", "budget": "r=2", **options}))


@pytest.mark.parametrize(
    ("options", "arguments", "error", "said"),
    [
        ({"end": 21}, {}, AllocationError, "the run has 20 steps"),
        ({"begin": 13}, {}, AllocationError, "begin must come first"),
        ({"every": 12}, {}, AllocationError, "the last cut is at step 12 of 20"),
        ({"window": "epoch", "every": 1}, {"train_rows": 96}, AllocationError, "window 12"),
        (
            {"shrink": "every"},
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_steps": 500},
            TrainingError,
            "shrink",
        ),
    ],
)
def test_what_the_run_has_no_room_for(
    options: dict[str, Any], arguments: dict[str, Any], error: type[LorankError], said: str, tmp_path: Path
) -> None:
    rows = arguments.pop("train_rows", 96)
    trainer = tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2", **options), rows=rows, **arguments)
    with pytest.raises(error, match=said):
        trainer.train()
    assert trainer.state.global_step == 0


def test_no_adapter_no_training(tmp_path: Path) -> None:
    base = BertForSequenceClassification(tiny_config(num_labels=2))
    with pytest.raises(AdapterError, match="get_peft_model"):
        tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2"), model=base)


def test_callbacks_are_not_to_be_replaced(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="restores itself"):
        tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2"), restore_callback_states_from_checkpoint=True)


def test_a_trained_adapter_is_pruned_from_where_it_stands(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path / "first")
    first.train()
    before = logits(first.model)
    allocation = RankAllocation(budget="r=2", **ADALORA)
    second = tiny_trainer(tmp_path / "second", allocation, model=first.model)
    assert torch.allclose(logits(second.model), before, atol=1e-4)
    second.train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters
    assert np.isfinite(second.evaluate()["eval_loss"])
