"""What RankAllocation refuses, and in which words."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import tiny_config, tiny_trainer
from tests.in_training.pruning_cases import ADALORA, IGU, SHORT, Stop
from transformers import (
    BertForSequenceClassification,
)

from lorank import LorankError, RankAllocation
from lorank.errors import AdapterError, AllocationError, BudgetError, LorankWarning, RecipeError, TrainingError


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


def test_a_loss_of_ones_own(tmp_path: Path) -> None:
    """A Trainer that computes its own loss takes the labels away before the model is called: said clearly, and early."""
    with pytest.raises(TrainingError, match="label smoothing takes the labels away"):
        tiny_trainer(tmp_path, RankAllocation(budget="r=2", **IGU), label_smoothing_factor=0.1).train()
    trainer = tiny_trainer(tmp_path, RankAllocation(budget="r=2", **IGU))
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean()
    with pytest.raises(TrainingError, match=r"the Trainer computes its own.*attach"):
        trainer.train()
    allocation = RankAllocation(budget="r=2", **{**IGU, "estimator": "training-pass"})
    tiny_trainer(tmp_path, allocation, label_smoothing_factor=0.1).train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters


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
        ({"method": "i-lora", "every": 1}, RecipeError, "give scoring_data="),
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


def test_deepspeed_is_refused_before_it_takes_the_model_apart(tmp_path: Path) -> None:
    """On a CPU accelerate's state says MULTI_CPU, so it is the plugin that tells; with DeepSpeed itself: `make deepspeed`."""
    trainer = tiny_trainer(tmp_path)
    trainer.args.deepspeed_plugin = "of a configuration"
    with pytest.raises(TrainingError, match=r"score, allocate, then train the plan with it \(docs/several-devices.md"):
        RankAllocation(budget="r=2", **ADALORA).attach(trainer)
    given = RankAllocation(budget="r=2", **ADALORA)
    with pytest.raises(TrainingError, match="cannot score under DeepSpeed"):  # as the Trainer's constructor calls it
        given.on_init_end(trainer.args, trainer.state, trainer.control, model=trainer.model)


def test_processes_that_would_train_alone_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU, torchrun, and no `use_cpu`: accelerate takes each process for the only one, and says nothing."""
    trainer = tiny_trainer(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match=r"2 processes were started, and this Trainer knows of 1: .*use_cpu=True"):
        RankAllocation(budget="r=2", **ADALORA).attach(trainer)
