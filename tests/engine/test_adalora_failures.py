"""What goes wrong with PEFT's AdaLoRA (research note 4.5, PEFT's issues), and goes right here: one test for each."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, PartialState
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from tests.conftest import random_batch, tiny_config, tiny_trainer
from tests.engine.test_allocator import allocator, draw, triplets
from transformers import BertForSequenceClassification, TrainerCallback, set_seed

from lorank import RankAllocation
from lorank.adapter.orthogonality import orthogonality_plain
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.schedule import CutSchedule
from lorank.errors import AllocationError, LorankWarning, TrainingError
from lorank.in_training.loss_scaler import LeftOutSteps, unscale
from lorank.in_training.trainer_setup import check_setup

OPTIONS: dict[str, Any] = {"method": "adalora", "begin": 0.2, "end": 0.6, "interval": 0.1}


def trained(folder: Path, *callbacks: Any, budget: str = "r=2", **arguments: Any) -> tuple[Any, RankAllocation]:
    allocation = RankAllocation(budget=budget, **OPTIONS)
    trainer = tiny_trainer(folder, allocation, *callbacks, **arguments)
    trainer.train()
    return trainer, allocation


def test_1_a_target_equal_to_the_initial_rank_cuts_nothing(tmp_path: Path) -> None:
    """PEFT: RuntimeError, kthvalue with k = 0."""
    _, allocation = trained(tmp_path, budget="r=4")
    assert set(allocation.plan.ranks.values()) == {4}


def test_2_a_boundary_step_that_is_skipped_is_made_up_for() -> None:
    """PEFT: AttributeError on rank_pattern None (also #855)."""
    ours = allocator(*triplets(), "adalora", CutSchedule(5, 6, 10), "r=2")
    for step in range(1, 8):
        draw(ours.adapter, step)
        ours.before_step(step)
        ours.after_step(step, None, skipped=step == 6)
    assert ours.finished == 7
    assert sum(ours.adapter.ranks) == 2 * len(ours.adapter.names)


def test_3_gradients_that_are_gone_are_named(tmp_path: Path) -> None:
    """PEFT: TypeError, Parameter * None (#1721), if called after zero_grad. Here nobody calls; if there are none, it is said."""

    class Thief(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            model.zero_grad()

    allocation = RankAllocation(budget="r=2", **OPTIONS)
    trainer = tiny_trainer(tmp_path, allocation)
    trainer.callback_handler.callbacks.insert(0, Thief())
    with pytest.raises(TrainingError, match="no triplet has a gradient at step 1"):
        trainer.train()


def test_4_tensors_and_moments_shrink_while_training(tmp_path: Path) -> None:
    """PEFT: A stays (8, 16) with 3 non-zero E until it is saved; the optimizer's state never shrinks."""
    sizes: dict[int, tuple[int, int, int]] = {}

    class Sizes(TrainerCallback):
        def on_step_end(
            self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **_: Any
        ) -> None:
            adapter = TripletAdapter.of(model)
            pq = sum(factor.numel() for factor in (*adapter.p, *adapter.q))
            moments = [optimizer.state[f]["exp_avg"].numel() for f in adapter.factors("all") if f in optimizer.state]
            sizes[state.global_step] = pq, sum(moments), sum(f.numel() for f in adapter.factors("all"))

    trainer, allocation = trained(tmp_path, Sizes())
    assert sizes[11][0] == 4 * sum(allocation.plan.unit_costs.values())
    assert {size[0] for step, size in sizes.items() if step >= 12} == {allocation.plan.spent}
    assert all(moments == factors for _, moments, factors in sizes.values())
    trainer.save_model(str(tmp_path / "final"))
    saved = load_file(tmp_path / "final" / "adapter_model.safetensors")
    assert sum(tensor.numel() for name, tensor in saved.items() if "lora_" in name) == allocation.plan.spent


def test_5_resuming_in_mid_schedule_ends_at_the_asked_rank(tmp_path: Path) -> None:
    """PEFT: 3 ranks in place of 8, EMA state lost, and an adapter that cannot be loaded again."""
    trained(tmp_path)
    allocation = RankAllocation(budget="r=2", **OPTIONS)
    trainer = tiny_trainer(tmp_path, allocation)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))
    assert allocation.plan.total_rank == 2 * len(allocation.plan.ranks)
    trainer.save_model(str(tmp_path / "final"))
    fresh = BertForSequenceClassification(tiny_config(num_labels=2))
    PeftModel.from_pretrained(fresh, str(tmp_path / "final"))


def test_6_it_allocates_without_being_called(tmp_path: Path) -> None:
    """PEFT: silently a plain LoRA unless update_and_allocate is called by hand (#432, #1327, #1801, #3373)."""
    _, allocation = trained(tmp_path)
    assert len(set(allocation.plan.ranks.values())) > 1


def test_7_a_loss_of_ones_own_has_the_regulariser_too(tmp_path: Path) -> None:
    """PEFT: the regulariser is added only where outputs have a loss, and then to the eval loss too."""
    penalties = {}

    class Last(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            penalties[gamma] = float(orthogonality_plain(TripletAdapter.of(model)).detach())

    for gamma in (0.0, 1.0):
        allocation = RankAllocation(budget="r=2", orthogonality=gamma, **OPTIONS)
        trainer = tiny_trainer(tmp_path / str(gamma), allocation, Last())
        trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: outputs.logits.square().mean()
        trainer.train()
    assert penalties[1.0] < 0.95 * penalties[0.0]


def test_8_the_start_changes_nothing(tmp_path: Path) -> None:
    """PEFT: a release drew E from a normal distribution (#1798, #1884)."""
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).eval()
    before = base(**random_batch()).logits
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["query"], task_type=TaskType.SEQ_CLS))
    RankAllocation(budget="r=2", **OPTIONS).prepare(model)
    assert torch.equal(model.eval()(**random_batch()).logits, before)


def test_9_a_schedule_without_a_pruning_phase_is_refused(tmp_path: Path) -> None:
    """PEFT: crashed in kthvalue, because tfinal is a duration (#2337); total_step had to be known."""
    allocation = RankAllocation("adalora", "r=2", begin=12, end=8)
    with pytest.raises(AllocationError, match="begin must come first"):
        tiny_trainer(tmp_path, allocation).train()


def test_10_r_of_the_config_is_the_initial_rank(tmp_path: Path) -> None:
    """PEFT: r is ignored, init_r counts (#1971)."""
    model = tiny_trainer(tmp_path, r=6).model
    allocation = RankAllocation(budget="r=2", **OPTIONS)
    allocation.prepare(model)
    assert set(TripletAdapter.of(model).ranks) == {6}


def test_11_rank_zero_is_saved_and_loaded(tmp_path: Path) -> None:
    """PEFT: loading failed (#1539). Here such a module has no adapter at all."""
    trainer, allocation = trained(tmp_path, budget="r=0.4")
    assert 0 in allocation.plan.ranks.values()
    trainer.save_model(str(tmp_path / "final"))
    fresh = BertForSequenceClassification(tiny_config(num_labels=2))
    loaded = PeftModel.from_pretrained(fresh, str(tmp_path / "final"))
    without = [name for name, rank in allocation.plan.ranks.items() if not rank]
    assert not any(hasattr(loaded.get_base_model().get_submodule(name), "lora_A") for name in without)
    assert not any(hasattr(trainer.model.get_base_model().get_submodule(name), "lora_A") for name in without)


def test_12_a_bf16_base_trains_and_infers(tmp_path: Path) -> None:
    """PEFT: float and bf16 met at inference (#1309)."""
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3)).to(torch.bfloat16)
    lora = LoraConfig(r=4, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS)
    trainer, allocation = trained(tmp_path, model=get_peft_model(base, lora))
    assert all(p.dtype == torch.float32 for name, p in trainer.model.named_parameters() if "lora_" in name)
    assert trainer.model.eval()(**random_batch()).logits.dtype == torch.bfloat16
    assert allocation.plan.spent <= allocation.plan.budget_parameters


def fp16(parameter: torch.nn.Parameter, scale: float) -> AcceleratedOptimizer:
    PartialState(cpu=True)
    AcceleratorState(cpu=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    scaler.scale(torch.ones(()))  # makes its state, as the first backward pass does
    return AcceleratedOptimizer(torch.optim.SGD([parameter], lr=1.0), scaler=scaler)


@pytest.mark.parametrize("clipped", [False, True])
def test_13_fp16_gradients_are_unscaled_once(clipped: bool) -> None:
    """PEFT: scores see scaled gradients. Clipping unscales them, without clipping nobody had."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, left_out = fp16(parameter, 1024.0), LeftOutSteps()
    parameter.grad = torch.full((2,), 2048.0)
    if clipped:
        optimizer.scaler.unscale_(optimizer.optimizer)
    unscale(optimizer)
    assert parameter.grad.tolist() == [2.0, 2.0]
    optimizer.step()
    assert parameter.tolist() == [-1.0, -1.0]
    assert not left_out.was_left_out(optimizer)
    parameter.grad = torch.full((2,), float("inf"))
    left_out.before_step(optimizer)
    optimizer.step()
    assert left_out.was_left_out(optimizer)


def test_14_scores_of_path_estimators_do_not_depend_on_clipping(tmp_path: Path) -> None:
    """PEFT: clipping changes the scores, since they are made of clipped gradients."""
    found = []
    for norm in (0.0, 1e-3):
        allocation = RankAllocation(
            "igu-lora", "r=2", every=1, initial_lambda=0.3, **{k: v for k, v in OPTIONS.items() if k != "method"}
        )
        tiny_trainer(tmp_path / str(norm), allocation, max_grad_norm=norm, learning_rate=0.0).train()
        found.append(allocation.scores.fingerprint)
    assert found[0] == found[1]


def test_15_ties_do_not_prune_too_much() -> None:
    """PEFT: everything at the threshold goes, so equal scores can leave nothing."""
    ours = allocator(*triplets(), "adalora", CutSchedule(0, 2, 1), "rank=11", orthogonality=0.0)
    for step in (1, 2):
        with torch.no_grad():
            for factor in ours.adapter.factors("all"):
                factor.fill_(1.0)
                factor.grad = torch.ones_like(factor)
        ours.before_step(step)
        with pytest.warns(LorankWarning, match="every score is equal") if step == 2 else nullcontext():
            ours.after_step(step, None)
    assert sum(ours.adapter.ranks) == 11


def test_16_what_was_cut_does_not_grow_again(tmp_path: Path) -> None:
    """PEFT: E is edited outside of the optimizer, whose moments make it grow between masks."""
    ranks = []

    class Ranks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            ranks.append(sum(int((values != 0).sum()) for values in TripletAdapter.of(model).lambdas))

    _, allocation = trained(tmp_path, Ranks())
    assert ranks[11:] == [allocation.plan.total_rank] * 9


def test_17_adapters_can_be_combined_afterwards(tmp_path: Path) -> None:
    """PEFT: AdaLoRA has no add_weighted_adapter. What comes out here is a LoRA."""
    trainer, _ = trained(tmp_path, model=_small())
    trainer.model.add_weighted_adapter(["default", "default"], [0.5, 0.5], "mixed", combination_type="cat")


def _small() -> PeftModel:
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
    return get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"]))


@pytest.mark.parametrize("kind", ["MEGATRON_LM"])
def test_18_sharded_training_is_refused_with_a_reason(kind: str, tmp_path: Path) -> None:
    """PEFT: gradients are None, or flat and partitioned parameters are scored as if they were whole."""
    model, adapter = triplets()
    arguments = tiny_trainer(tmp_path).args
    arguments.distributed_state.distributed_type = type(arguments.distributed_state.distributed_type)[kind]
    try:
        with pytest.raises(TrainingError, match="whole parameters and gradients"):
            check_setup(arguments, adapter, torch.optim.SGD(model.parameters()), "last")
    finally:
        arguments.distributed_state.distributed_type = type(arguments.distributed_state.distributed_type)["NO"]


class EightBit(torch.nn.Linear):
    """Stands for a quantised layer: whole numbers and a scale, turned back in the forward pass, in half precision."""

    def __init__(self, full: torch.nn.Linear) -> None:
        super().__init__(full.in_features, full.out_features)
        self.scale = full.weight.detach().abs().max() / 127
        self.weight = torch.nn.Parameter(
            (full.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False
        )
        self.bias = full.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dense = (self.weight * self.scale).to(torch.bfloat16)
        return torch.nn.functional.linear(x.to(torch.bfloat16), dense, self.bias.to(torch.bfloat16)).to(x.dtype)


def test_19_an_8_bit_base_trains_without_nan(tmp_path: Path) -> None:
    """PEFT: NaN in 8-bit, and Half against Float (#1113, AdaLoRA #27). bitsandbytes itself needs a GPU and is not run here."""
    set_seed(0)
    base = BertForSequenceClassification(tiny_config(num_labels=2, initializer_range=0.3))
    for layer in base.bert.encoder.layer:
        attention = layer.attention.self
        attention.query, attention.value = EightBit(attention.query), EightBit(attention.value)
    lora = LoraConfig(r=4, target_modules=["query", "value"], task_type=TaskType.SEQ_CLS)
    trainer, allocation = trained(tmp_path, model=get_peft_model(base, lora))
    factors = [p for name, p in trainer.model.named_parameters() if "lora_" in name]
    assert all(p.dtype == torch.float32 and bool(torch.isfinite(p).all()) for p in factors)
    assert sum(p.numel() for p in factors) == allocation.plan.spent
    assert bool(torch.isfinite(trainer.model.eval()(**random_batch()).logits).all())
