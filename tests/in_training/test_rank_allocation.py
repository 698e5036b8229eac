"""RankAllocation in a real Trainer."""

import copy
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tests.conftest import tiny_config, tiny_trainer
from tests.in_training.pruning_cases import ADALORA, IGU, SHORT, Stop, logits
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    TrainerCallback,
    set_seed,
)

from lorank import ImportanceScores, RankAllocation, RankPlan
from lorank.adapter.triplet import TripletAdapter, TripletLinear
from lorank.errors import LorankWarning
from lorank.in_training.trainer_setup import call_after_backward


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


@pytest.mark.parametrize(
    "options",
    [
        IGU,
        ADALORA,
        {**IGU, "preset": "paper", "window": 2},
        {**IGU, "preset": "within-layer", "window": 2},
        {**IGU, "preset": "trapezoid", "window": 2, "shrink": "every"},
        {**IGU, "estimator": "unbiased", "intervals": 4, "moved": "all", "sign": "loss-reduction", "score": "ucb"},
        {**IGU, "preset": "official", **SHORT, "factors": "kept", "sign": "window"},
    ],
    ids=["igu-lora", "adalora", "igu-lora-paper", "within-layer", "trapezoid", "unbiased", "official"],
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
    if options.get("preset") == "within-layer":
        # Three passes for each of two layers at steps 1 to 11, two comparisons of the loss, and a check with 20 intervals.
        assert plan.provenance["scoring_passes"] == 3 * 2 * 11 + 2 + 21
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


def test_cuts_are_logged(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Reporter(TrainerCallback):
        """Stands for report_to: Trainer puts those before the user's callbacks."""

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            seen.append(dict(logs))

    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, Reporter(), allocation)
    allocation.attach(trainer)
    trainer.train()
    cuts = [logs for logs in seen if "rank_allocation/total_rank" in logs]
    assert [logs["rank_allocation/step"] for logs in cuts] == [10, 12]
    assert cuts[-1]["rank_allocation/parameters"] == allocation.plan.spent
    assert cuts[-1]["rank_allocation/total_rank"] == allocation.plan.total_rank
    assert cuts[0]["rank_allocation/modules_changed"] > 0
    assert all(isinstance(value, (int, float)) for logs in cuts for value in logs.values())
    assert any("rank_allocation/budget" in entry for entry in trainer.state.log_history)


def test_retrain_ends_at_the_last_cut_with_a_fresh_start(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", factors="fresh", **ADALORA)
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


def test_stopping_early_makes_the_last_cut_then(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation, Stop(7))
    with pytest.warns(LorankWarning, match="ended at step 7 without the last cut, due at step 12"):
        trainer.train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters


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


def test_a_plan_is_made_once(tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **ADALORA)
    trainer = tiny_trainer(tmp_path, allocation)
    trainer.train()
    plan = allocation.plan
    trainer.train()  # goes on with the plain LoRA
    assert allocation.plan is plan


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


class Norms(TrainerCallback):
    """Norm of all gradients as the optimizer gets them."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        self.norms.append(float(torch.cat(gradients).norm()))


@pytest.mark.parametrize("accumulation", [pytest.param(1, marks=pytest.mark.long), 2])
def test_attached_the_regulariser_is_added_before_clipping(accumulation: int, tmp_path: Path) -> None:
    """Once a step, whatever is accumulated; a callback alone is asked after clipping, which is said unless it is meant."""
    found = []
    for attached, place in ((True, "before"), (False, "before"), (True, "after"), (False, "after")):
        chosen = {"orthogonality": 3.0, "orthogonality_added": f"{place}-clipping"}
        allocation, norms = RankAllocation(budget="r=2", **chosen, **ADALORA), Norms()
        options: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "max_grad_norm": 0.01, "max_steps": 6}
        trainer = tiny_trainer(tmp_path / f"{attached} {place}", allocation, norms, **options)
        if attached:
            allocation.attach(trainer)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            trainer.train()
        said = [str(one.message) for one in told if "the Trainer clips gradients to norm 0.01" in str(one.message)]
        assert len(said) == (not attached and place == "before")
        assert all("attach" in one and "orthogonality_added='after-clipping'" in one for one in said)
        assert (max(norms.norms) < 0.0101) == (attached and place == "before")
        assert "training_step" not in vars(trainer)
        found.append(norms.norms)
    assert found[1] == found[2] == found[3]


def test_scaled_gradients_get_a_scaled_regulariser() -> None:
    """fp16: gradients are multiplied by the loss scale when the regulariser is added to them."""
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    accelerator = SimpleNamespace(sync_gradients=True, scaler=scaler)
    trainer = SimpleNamespace(accelerator=accelerator, args=SimpleNamespace(device="cpu"), training_step=lambda: 1.0)
    scales: list[Any] = []
    take_back = call_after_backward(trainer, scales.append)
    assert trainer.training_step() == 1.0
    accelerator.sync_gradients = False
    trainer.training_step()
    accelerator.sync_gradients, accelerator.scaler = True, None
    trainer.training_step()
    assert [float(scale) for scale in scales] == [512.0, 1.0]
    take_back()
    trainer.training_step()
    assert len(scales) == 2
