"""AllocationLoop: the engine in a loop without a Trainer, equal to the Trainer's to the bit."""

import copy
import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from tests.conftest import tiny_trainer
from tests.in_training.pruning_cases import logits
from torch import nn
from torch.utils.data import DataLoader
from transformers import TrainerCallback, default_data_collator

import lorank
from lorank import AllocationLoop, RankAllocation
from lorank.allocation.cut_history import CutHistory
from lorank.errors import DataError, LorankWarning, RecipeError, TrainingError

STEPS = 10
METHODS: dict[str, dict[str, Any]] = {
    "i-lora": {"method": "i-lora"},
    "i-lora kept": {"method": "i-lora", "factors": "kept", "baseline": "initial", "curve": "cubic", "interval": 2},
    "igu-lora": {"method": "igu-lora", "every": 2, "begin": 1, "end": 8, "interval": 2, "shrink": "every"},
    "on the path": {"method": "igu-lora", "every": 1, "begin": 1, "end": 6, "interval": 1, "train_on_path": True},
    "adalora": {"method": "adalora", "begin": 1, "end": 8, "interval": 1},
}


def examples() -> Dataset:
    ids = torch.randint(5, 21, (32, 8), generator=torch.Generator().manual_seed(7))
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": (ids == 7).any(1).long().tolist()})


def model_and_batches(folder: Path, size: int = 8) -> tuple[PeftModel, list[dict[str, torch.Tensor]]]:
    trainer = tiny_trainer(folder)
    rows = trainer.train_dataset
    batches = [
        default_data_collator([rows[k] for k in range(first, first + size)]) for first in range(0, len(rows), size)
    ]
    return trainer.model, batches * 2


def loop(model: PeftModel, **options: Any) -> AllocationLoop:
    given = {"budget": "r=2", "steps": STEPS, "seed": 3, **options}
    if given["method"] == "i-lora" and "scoring_data" not in given:
        given |= {"scoring_data": examples(), "collate": default_data_collator, "scoring_batch_size": 8}
    return AllocationLoop(model, **given)


def adamw(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)


def step(model: nn.Module, allocation: AllocationLoop, optimizer: Any, *batches: Any, divided: bool = True) -> Any:
    model.train()
    for number, batch in enumerate(batches):
        if number:
            allocation.begin_micro_batch()
        (model(**batch).loss / (len(batches) if divided else 1)).backward()
    allocation.after_backward()
    nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    allocation.before_step()
    optimizer.step()
    logged = allocation.after_step(optimizer)
    optimizer.zero_grad()
    return logged


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


class Watched(TrainerCallback):
    """Remembers the random state at the beginning of each step, and its batches."""

    def __init__(self) -> None:
        self.states: list[torch.Tensor] = []
        self.batches: list[list[Any]] = []

    def watch(self, trainer: Any) -> None:
        taken = trainer.get_batch_samples

        def watched(*args: Any) -> Any:
            found = taken(*args)
            self.batches.append([dict(batch.items()) for batch in found[0]])
            return found

        trainer.get_batch_samples = watched

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.states.append(torch.get_rng_state())


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_loop_is_the_trainer_bit_for_bit(name: str, accumulated: int, tmp_path: Path) -> None:
    """Same batches, dropout and optimizer: same scores, plan and weights, at the end and in front of the fresh start."""
    options = METHODS[name]
    more = {"scoring_data": examples(), "scoring_batch_size": 8} if options["method"] == "i-lora" else {}
    watched = Watched()
    trainer = tiny_trainer(
        tmp_path / "trainer",
        watched,
        max_steps=STEPS,
        optim="adamw_torch",
        lr_scheduler_type="constant",
        save_strategy="no",
        gradient_accumulation_steps=accumulated,
        per_device_train_batch_size=8 // accumulated,
    )
    watched.watch(trainer)
    expected = RankAllocation(budget="r=2", **options, **more).attach(trainer)
    trainer.train()

    model, _ = model_and_batches(tmp_path / "loop")
    allocation = loop(model, **options)
    optimizer = adamw(model)
    for state, batches in zip(watched.states, watched.batches, strict=True):
        torch.set_rng_state(state)
        # A Trainer leaves the division to a model that takes `num_items_in_batch`; BERT takes it, and does not look at it.
        step(model, allocation, optimizer, *batches, divided=False)
    assert allocation.ended
    plan = allocation.finish(optimizer)
    assert plan.ranks == expected.plan.ranks
    assert allocation.scores.fingerprint == expected.scores.fingerprint
    assert plan == expected.plan
    assert same(trained(model), trained(trainer.model))


def through_torch(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state: Any) -> Any:
    tensors, rest = write_tensors(state["tensors"]), {"values": state["values"], "step": state["step"]}
    return {"tensors": read_tensors(tensors), **json.loads(json.dumps(rest, sort_keys=True))}


@pytest.mark.parametrize("written", [through_torch, pytest.param(through_safetensors, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", METHODS)
def test_resuming_is_exact(name: str, written: Callable[[Any], Any], tmp_path: Path) -> None:
    """Before, between and after the cuts, also where these have made the model's tensors smaller."""
    options = METHODS[name]
    model, batches = model_and_batches(tmp_path)
    start = copy.deepcopy(model)
    allocation, saved = loop(model, **options), []
    optimizer = adamw(model)
    for number in range(STEPS):
        if not number % 2:
            parts = (model.state_dict(), optimizer.state_dict(), torch.get_rng_state())
            saved.append(copy.deepcopy((number, *parts, written(allocation.state_dict()))))
        step(model, allocation, optimizer, batches[number])
    plan, weights = allocation.finish(optimizer), trained(model)
    for number, of_model, of_optimizer, stream, of_allocation in saved:
        again = copy.deepcopy(start)
        resumed = loop(again, **options)
        again.load_state_dict(of_model)
        optimizer = adamw(again)
        optimizer.load_state_dict(of_optimizer)
        resumed.load_state_dict(of_allocation)
        torch.set_rng_state(stream)
        for later in range(number, STEPS):
            step(again, resumed, optimizer, batches[later])
        assert resumed.finish(optimizer) == plan, number
        assert list(resumed.plan.ranks) == list(plan.ranks), number
        assert resumed.scores.fingerprint == allocation.scores.fingerprint, number
        assert same(trained(again), weights), number


def test_a_scoring_loader_resumes_too(tmp_path: Path) -> None:
    def made(model: PeftModel) -> AllocationLoop:
        loader = DataLoader(examples().with_format("torch"), batch_size=8, shuffle=True)  # type: ignore[arg-type]
        return loop(model, method="i-lora", scoring_data=loader)

    model, batches = model_and_batches(tmp_path)
    again = copy.deepcopy(model)
    allocation, optimizer = made(model), adamw(model)
    for number in range(STEPS):
        if number == 6:
            parts = (model.state_dict(), optimizer.state_dict(), allocation.state_dict(), torch.get_rng_state())
            saved = copy.deepcopy(parts)
        step(model, allocation, optimizer, batches[number])
    resumed = made(again)
    again.load_state_dict(saved[0])
    optimizer = adamw(again)
    optimizer.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    torch.set_rng_state(saved[3])
    for number in range(6, STEPS):
        step(again, resumed, optimizer, batches[number])
    assert resumed.finish(optimizer) == allocation.finish()
    assert resumed.scores.fingerprint == allocation.scores.fingerprint
    assert resumed.cut_history.cuts == allocation.cut_history.cuts


def test_what_comes_out_is_an_ordinary_adapter(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    base = copy.deepcopy(model).unload()
    allocation, cuts = loop(model, **METHODS["adalora"]), []
    optimizer = adamw(model)
    for batch in batches[:STEPS]:
        cuts.append(step(model, allocation, optimizer, batch))
    before = logits(model)
    plan = allocation.finish(optimizer, tmp_path / "out")
    assert [one["rank_allocation/step"] for one in cuts if one][-1] == 8
    assert sum(v.numel() for name, v in model.named_parameters() if "lora_" in name) == plan.spent
    assert torch.allclose(logits(model), before, atol=1e-5)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"plan.json", "scores.safetensors", "cuts.jsonl", "ranks.png"}
    logged = [(one["rank_allocation/step"], one["rank_allocation/total_rank"]) for one in cuts if one]
    kept = CutHistory.load(tmp_path / "out" / "cuts.jsonl")
    assert [(cut.step, sum(cut.ranks.values())) for cut in kept.cuts] == logged
    assert kept.ranks == plan.ranks
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
    assert torch.allclose(logits(loaded), before, atol=1e-5)
    assert allocation.finish() is plan
    assert allocation.ended
    step(model, allocation, adamw(model), batches[0])  # training may go on: nothing is measured or cut any more
    assert allocation.plan is plan


def test_after_a_first_stage_the_plan_is_trained_from_a_fresh_start(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    heads = {name: value for name, value in trained(model).items() if "lora_" not in name}
    allocation = loop(model, method="i-lora")
    optimizer = adamw(model)
    for batch in batches[:STEPS]:
        step(model, allocation, optimizer, batch)
    plan = allocation.finish(optimizer)
    fresh = trained(model)
    assert same({name: fresh[name] for name in heads}, heads)
    assert not any(value.any() for name, value in fresh.items() if "lora_B" in name)
    assert sum(value.numel() for name, value in fresh.items() if "lora_" in name) == plan.spent


def test_it_ends_when_the_plan_is_stable(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    rule = {"share": 1.0, "window": 2, "windows": 1}
    allocation = loop(model, method="i-lora", preset="paper", stop_when_stable=rule)
    optimizer = adamw(model)
    for batch in batches[:STEPS]:
        step(model, allocation, optimizer, batch)
        if allocation.ended:
            break
    assert allocation.step == 5  # the first of ten is warm-up
    assert allocation.finish(optimizer).provenance["ended"] == "stable at step 5 of 10"


def test_skipped_steps_do_not_count(tmp_path: Path) -> None:
    """A loss scaler that leaves out the first steps: the plan of a run that never had them."""
    found = []
    for skips in (0, 3):
        model, batches = model_and_batches(tmp_path)
        for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
            dropout.p = 0.0
        allocation = loop(model, **METHODS["on the path"])
        optimizer = adamw(model)
        for _ in range(skips):
            model.train()
            model(**batches[-1]).loss.backward()
            allocation.after_backward()
            allocation.before_step()
            assert allocation.after_step(optimizer, skipped=True) is None
            optimizer.zero_grad()
        assert allocation.step == 0
        for batch in batches[:STEPS]:
            step(model, allocation, optimizer, batch)
        allocation.finish(optimizer)
        found.append((allocation.plan.ranks, allocation.scores.scores, trained(model)))
    assert found[0][0] == found[1][0]
    assert all((found[0][1][name] == values).all() for name, values in found[1][1].items())
    assert same(found[0][2], found[1][2])


def test_an_optimizer_that_knows_of_skipped_steps_is_asked(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    allocation, optimizer = loop(model, **METHODS["adalora"]), adamw(model)
    optimizer.step_was_skipped = True  # type: ignore[attr-defined]
    step(model, allocation, optimizer, batches[0])
    assert allocation.step == 0


class Doubled(nn.Module):
    """A loss of two calls with dropout of their own, as contrastive training has it."""

    def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
        ids, labels = batch
        first, second = model(ids).logits, model(ids).logits
        return nn.functional.cross_entropy(first, labels) + (first - second).square().mean()


@pytest.mark.parametrize("method", ["i-lora", "igu-lora"])
def test_a_loss_of_ones_own(method: str, tmp_path: Path) -> None:
    """Positional arguments, two calls, dropout, two micro-batches: own passes give the loss that is trained."""
    model, batches = model_and_batches(tmp_path)
    loss, pairs = Doubled(), [(batch["input_ids"], batch["labels"]) for batch in batches]
    options = {"scoring_data": DataLoader(pairs, batch_size=None)} if method == "i-lora" else {"every": 1}
    allocation = loop(model, method=method, loss=loss, **options)
    optimizer = adamw(model)
    for number in range(STEPS):
        model.train()
        with torch.no_grad():
            model(pairs[0][0])  # no call of the loss
        for batch in pairs[2 * (number % 6) :][:2]:
            loss(model, batch).backward()
        allocation.after_backward()
        allocation.before_step(batch)
        optimizer.step()
        allocation.after_step(optimizer)
        optimizer.zero_grad()
    assert allocation.finish(optimizer).total_rank


def test_a_loss_that_is_not_the_models_is_found_out(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    allocation = loop(model, method="igu-lora", every=1)
    optimizer = adamw(model)

    def once(backward: Callable[[], None], given: Any = None) -> None:
        model.train()
        backward()
        allocation.after_backward()
        allocation.before_step(given)
        optimizer.step()
        allocation.after_step(optimizer)
        optimizer.zero_grad()

    batch = batches[0]
    way_out = r"loss=function\(model, batch\), and before_step\(batch\)"
    with pytest.raises(TrainingError, match=f"was given no batch.*{way_out}"):
        once(lambda: model(batch["input_ids"]).logits.square().mean().backward())
    optimizer.zero_grad()
    with pytest.raises(TrainingError, match=f"another loss.*{way_out}"):
        once(lambda: model(**batch).logits.square().mean().backward())
    other, batches = model_and_batches(tmp_path)
    allocation = loop(other, method="igu-lora", every=1, loss=lambda model, batch: model(**batch).loss)
    other.train()
    other(**batch).loss.backward()
    with pytest.raises(TrainingError, match="given no batch"):
        allocation.before_step()


def test_stopped_early_the_cut_is_made_and_said(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    allocation = loop(model, **METHODS["adalora"])
    optimizer = adamw(model)
    for batch in batches[:6]:
        step(model, allocation, optimizer, batch)
    with pytest.warns(LorankWarning, match="ended at step 6 without the last cut, due at step 8"):
        assert allocation.finish(optimizer).total_rank


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    early = adamw(model)
    allocation = loop(model, **METHODS["adalora"])
    with pytest.raises(TrainingError, match="make it after AllocationLoop"):
        step(model, allocation, early, batches[0])
    with pytest.raises(TrainingError, match="part of an allocation that has not ended"):
        loop(model, **METHODS["adalora"])
    with pytest.raises(TrainingError, match="no plan before training ends"):
        _ = allocation.plan

    model, batches = model_and_batches(tmp_path)
    nothing = loop(model, **METHODS["igu-lora"])
    optimizer = adamw(model)
    step(model, nothing, optimizer, batches[0])
    with pytest.raises(TrainingError, match="ended at step 1 with 0 scored mini-batches"):
        nothing.finish(optimizer)

    model, batches = model_and_batches(tmp_path)
    ended = loop(model, **METHODS["adalora"])
    optimizer = adamw(model)
    for batch in batches[:STEPS]:
        step(model, ended, optimizer, batch)
    state = ended.state_dict()
    ended.finish(optimizer)
    with pytest.raises(TrainingError, match="the allocation has ended; save the model"):
        ended.state_dict()
    with pytest.raises(TrainingError, match="the allocation has ended; resume with a new model"):
        ended.load_state_dict(state)
    again = loop(model, method="adalora", budget="r=1")  # what came out is a LoRA, and may be made smaller again
    assert not again.ended


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"scoring_data": "scoring"}, RecipeError, "give a DataLoader, or rows with collate"),
        ({"scoring_data": list(range(8))}, RecipeError, "list without collate; give a DataLoader"),
        ({"scoring_data": Dataset.from_dict({"a": [1, 2]})}, RecipeError, "Dataset without collate"),
        ({"scoring_data": DataLoader([1, 2]), "collate": list}, RecipeError, "DataLoader with collate"),  # type: ignore[arg-type]
        ({"scoring_data": iter([1])}, DataError, "passed through only once"),
        ({"scoring_data": [], "collate": list}, DataError, "0 examples"),
        ({"scoring_data": None}, RecipeError, "give scoring_data="),
        ({"source": "training", "scoring_data": None}, RecipeError, "give the training data as scoring_data"),
        ({"method": "igu-lora", "scoring_data": [1], "collate": list}, RecipeError, "leave it out"),
        ({"method": "igu-lora", "scoring_data": None, "steps": 3}, Exception, "the last cut is at step"),
    ],
)
def test_bad_options_leave_the_model_alone(
    options: dict[str, Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    model, _ = model_and_batches(tmp_path)
    with pytest.raises(error, match=said):
        loop(model, **{"method": "i-lora", **options})


def test_an_after_backward_that_is_not_called_is_said_once(tmp_path: Path) -> None:
    """The regulariser is then added to gradients that may be clipped already."""
    model, batches = model_and_batches(tmp_path)
    for place in ("before-clipping", "after-clipping"):
        own = copy.deepcopy(model)
        allocation = loop(own, **METHODS["adalora"], orthogonality_added=place)
        optimizer = adamw(own)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for batch in batches[:2]:
                own(**batch).loss.backward()
                allocation.before_step()
                optimizer.step()
                allocation.after_step(optimizer)
                optimizer.zero_grad()
        said = [one for one in told if "after_backward was not called" in str(one.message)]
        assert len(said) == (place == "before-clipping")


def test_a_state_from_before_there_was_a_choice_of_place_continues(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    first, again, differently = (copy.deepcopy(model) for _ in range(3))
    allocation = loop(first, **METHODS["adalora"])
    step(first, allocation, adamw(first), batches[0])
    state = allocation.state_dict()
    del state["values"]["options"]["triplets"]["orthogonality_added"]
    same_place = loop(again, **METHODS["adalora"])
    same_place.load_state_dict(state)
    assert same_place.step == 1
    other = loop(differently, **METHODS["adalora"], orthogonality_added="after-clipping")
    with pytest.raises(TrainingError, match=r"orthogonality_added was 'before-clipping', now 'after-clipping'"):
        other.load_state_dict(state)


def test_another_state_is_refused(tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    start = copy.deepcopy(model)
    allocation, optimizer = loop(model, **METHODS["igu-lora"]), adamw(model)
    for batch in batches[:6]:
        step(model, allocation, optimizer, batch)
    state, weights = allocation.state_dict(), model.state_dict()

    def loaded(options: dict[str, Any], load: bool = True) -> None:
        again = copy.deepcopy(start)
        resumed = loop(again, **options)
        if load:
            again.load_state_dict(weights)
        resumed.load_state_dict(state)

    with pytest.raises(TrainingError, match=r"another allocation, options: cut\.begin was 1"):
        loaded({**METHODS["igu-lora"], "begin": 2})
    with pytest.raises(TrainingError, match="another allocation, budget in parameters"):
        loaded({**METHODS["igu-lora"], "budget": "r=1"})
    with pytest.raises(TrainingError, match="load the model's state of the same step first"):
        loaded(METHODS["igu-lora"], load=False)
    with pytest.raises(TrainingError, match="no state of AllocationLoop: tensors is missing"):
        loop(copy.deepcopy(start), **METHODS["igu-lora"]).load_state_dict({"step": 3})

    # An optimizer from before the smaller tensors were loaded trains what is not in the model any more.
    again = copy.deepcopy(start)
    resumed, early = loop(again, **METHODS["igu-lora"]), adamw(again)
    again.load_state_dict(weights)
    early.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(state)
    with pytest.raises(TrainingError, match=r"where a training is resumed after model\.load_state_dict"):
        step(again, resumed, early, batches[6])


@pytest.mark.parametrize("name", METHODS)
def test_accelerate(name: str, tmp_path: Path) -> None:
    """Prepared model, optimizer and loaders, and accumulation as accelerate has it: the plan of the bare loop."""
    options = METHODS[name]

    def quiet(folder: str) -> tuple[PeftModel, list[dict[str, torch.Tensor]]]:
        model, batches = model_and_batches(tmp_path / folder, size=4)
        for dropout in (module for module in model.modules() if isinstance(module, nn.Dropout)):
            dropout.p = 0.0
        return model, batches

    def scoring() -> DataLoader[Any]:
        return DataLoader(examples().with_format("torch"), batch_size=8)  # type: ignore[arg-type]

    bare, batches = quiet("bare")
    more = {"scoring_data": scoring()} if options["method"] == "i-lora" else {}
    expected, optimizer = loop(bare, **options, **more), adamw(bare)
    for number in range(STEPS):
        step(bare, expected, optimizer, *batches[2 * number : 2 * number + 2])
    expected.finish(optimizer)

    model, batches = quiet("accelerate")
    AcceleratorState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    more = {"scoring_data": accelerator.prepare(scoring())} if more else {}
    allocation = loop(model, **options, **more)
    prepared, optimizer = accelerator.prepare(model, adamw(model))
    for batch in batches[: 2 * STEPS]:
        prepared.train()
        with accelerator.accumulate(prepared):
            accelerator.backward(prepared(**batch).loss)
            if accelerator.sync_gradients:
                allocation.after_backward()
                accelerator.clip_grad_norm_([p for p in prepared.parameters() if p.requires_grad], 1.0)
                allocation.before_step()
            optimizer.step()
            if accelerator.sync_gradients:
                allocation.after_step(optimizer)
            else:
                allocation.begin_micro_batch()
            optimizer.zero_grad()
    allocation.finish(optimizer)
    assert allocation.plan == expected.plan
    assert allocation.scores.fingerprint == expected.scores.fingerprint
    assert same(trained(model), trained(bare))


GROUPS = {"attention": "r=3", r".*layer\.\d\.(intermediate|output)\.dense": "r=1"}


@pytest.mark.parametrize("name", ["i-lora", "adalora"])
def test_groups_of_modules_are_cut_by_themselves(name: str, tmp_path: Path) -> None:
    model, batches = model_and_batches(tmp_path)
    allocation = loop(model, budget=GROUPS, **METHODS[name])
    optimizer = adamw(model)
    for number in range(STEPS):
        step(model, allocation, optimizer, batches[number])
        if number == 4:
            state = allocation.state_dict()
    plan = allocation.finish(optimizer)
    groups = plan.provenance["groups"]
    for group, asked in groups.items():
        own = [n for n in plan.ranks if ("attention" in n) == (group == "attention")]
        assert asked["modules"] == len(own)
        assert asked["spent"] == sum(plan.ranks[n] * plan.unit_costs[n] for n in own) <= asked["parameters"]
    assert RankAllocation("adalora", GROUPS).budget == allocation.budget
    if name == "i-lora":  # a single cut, of all units: that of lorank.allocate
        assert plan.ranks == lorank.allocate(allocation.scores, GROUPS).ranks
    other, _ = model_and_batches(tmp_path)
    with pytest.raises(TrainingError, match="another allocation, budget in parameters"):
        loop(other, budget="r=2", **METHODS[name]).load_state_dict(state)
