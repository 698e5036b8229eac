"""Ranks are scored by the loss that is trained: through the Trainer where it is known, compared with training where not."""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import tiny_trainer
from tests.in_training.pruning_cases import IGU
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import Trainer

from lorank import RankAllocation
from lorank.errors import TrainingError
from lorank.in_training.trainer_pass import TrainerPass
from lorank.in_training.trainer_snapshot import trainer_as_before

STEPS = {"max_steps": 12, "logging_steps": 1}


class Noisy(Trainer):
    """A loss of its own, which counts, logs and draws as it is computed."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.calls, self.tokens, self.metrics = 0, torch.tensor(0), defaultdict(list)

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        labels = inputs.pop("labels")
        self.calls += 1
        self.tokens += labels.numel()
        noise = random.random() + float(np.random.rand()) + float(torch.rand(()))
        outputs = model(**inputs)
        loss = cross_entropy(outputs.logits / 3, 1 - labels) * (1 + 0.1 * noise)
        self.metrics["train" if model.training else "eval"].append(float(loss))
        return (loss, outputs) if return_outputs else loss


def noisy(folder: Path, *callbacks: Any, **options: Any) -> Noisy:
    plain = tiny_trainer(folder, *callbacks, **STEPS, **options)
    # The callbacks are in `plain`, whose model was prepared when it was made; the same objects move over.
    own = [one for one in plain.callback_handler.callbacks if one in callbacks]
    return Noisy(plain.model, plain.args, train_dataset=plain.train_dataset, callbacks=own)


def losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_attached_or_not_a_plain_trainer_gives_the_same_plan(tmp_path: Path) -> None:
    found = []
    for attached in (False, True):
        # The regulariser is added before clipping with attach, after it without.
        allocation = RankAllocation(budget="r=2", orthogonality=0.0, **IGU)
        trainer = tiny_trainer(tmp_path / str(attached), allocation, gradient_accumulation_steps=3, **STEPS)
        if attached:
            assert allocation.attach(trainer) is allocation
        trainer.train()
        found.append((losses(trainer), allocation.scores.fingerprint, dict(allocation.plan.ranks)))
    assert found[0] == found[1]


def test_attach_alone_is_enough(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **STEPS)
    allocation = RankAllocation(budget="r=2", **IGU).attach(trainer)
    trainer.train()
    assert allocation.plan.spent <= allocation.plan.budget_parameters
    assert "compute_loss" not in vars(trainer)
    assert trainer.callback_handler.callbacks.count(allocation) == 1


def test_a_loss_of_the_trainers_own_is_scored_when_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pass at α = 1 gives the loss that training had just seen for this micro-batch."""
    seen, own = [], TrainerPass._loss

    def spied(self: TrainerPass, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(own(self, *arguments, **options))
        return seen[-1]

    monkeypatch.setattr(TrainerPass, "_loss", spied)
    allocation = RankAllocation(budget="r=2", **{**IGU, "begin": 10, "end": 11, "interval": 1})
    trainer = noisy(tmp_path, allocation)
    allocation.attach(trainer)
    trainer.train()
    # The first pass of mini-batches 1 and 8 repeats training's pass, random draws included.
    trained = losses(trainer)
    assert [float(seen[k].detach()) for k in (0, 8)] == pytest.approx([trained[0], trained[7]], rel=1e-5)


def test_passes_of_our_own_leave_logs_counters_and_random_streams(tmp_path: Path) -> None:
    found = []
    for estimator in ("training-pass", "single-pass"):
        allocation = RankAllocation(
            budget="r=2", **{**IGU, "estimator": estimator, "begin": 10, "end": 11, "interval": 1}
        )
        trainer = noisy(tmp_path / estimator, allocation)
        allocation.attach(trainer)
        random.seed(1)
        trainer.train()
        found.append((losses(trainer)[:10], trainer.calls, int(trainer.tokens), trainer.metrics["train"][:10]))
        assert "eval" not in trainer.metrics
    assert found[0] == found[1]
    assert found[0][1:3] == (12, 96)


@pytest.mark.parametrize("way", ["subclass", "smoothing", "wrapped"])
def test_another_loss_than_the_models_is_refused_without_attach(way: str, tmp_path: Path) -> None:
    allocation = RankAllocation(budget="r=2", **IGU)
    if way == "subclass":
        trainer: Trainer = noisy(tmp_path, allocation)
    else:
        trainer = tiny_trainer(tmp_path, allocation, **STEPS)
        usual = trainer.compute_loss
        if way == "smoothing":  # the model is given its labels and returns a loss, which is not the one that is trained

            def smoothed(model: nn.Module, inputs: Any, *args: Any, **options: Any) -> torch.Tensor:
                return cross_entropy(model(**inputs).logits, inputs["labels"], label_smoothing=0.3)

            trainer.compute_loss = smoothed
        else:
            trainer.compute_loss = lambda *args, **options: -usual(*args, **options)
    with pytest.raises(TrainingError, match=r"(?s)allocation\.attach\(trainer\).*estimator='training-pass'"):
        trainer.train()
    assert trainer.state.global_step == 0
    assert not trainer.model._forward_pre_hooks


class Counting(Trainer):
    """A loss with a state of its own: a counter, a queue, a generator, a meter, and a module with a buffer."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.n, self.queue, self.generator = 0, torch.ones(80, 20), torch.Generator().manual_seed(1)
        self.meter, self.pair, self.centre = type("Meter", (), {})(), ({"n": 0},), nn.BatchNorm1d(2)
        self.meter.n = 0
        with torch.inference_mode():
            self.weights = torch.ones(2) / 2

    def compute_loss(self, model: nn.Module, inputs: Any, return_outputs: bool, num_items_in_batch: Any = None) -> Any:
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        self.last_outputs = outputs
        self.n += 1
        self.meter.n += 1
        self.pair[0]["n"] += 1
        self.centre(outputs.logits.detach())
        far = (outputs.logits.mean() - self.queue.mean()).square()
        self.queue.copy_(torch.cat([outputs.logits.detach().mean().expand(4, 20), self.queue[:-4]]))
        mixed = torch.rand((), generator=self.generator)
        loss = (1 - self.n / 30) * loss + self.n / 30 * far + mixed * outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        model.train()
        loss = self.compute_loss(model, self._prepare_inputs(inputs), False, num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


def test_a_loss_with_a_state_of_its_own_is_scored_and_its_state_is_trainings(tmp_path: Path) -> None:
    found = []
    for estimator in ("training-pass", "single-pass"):
        options = {**IGU, "estimator": estimator, "begin": 10, "end": 11, "interval": 1}
        plain = tiny_trainer(tmp_path / estimator, **STEPS)
        trainer = Counting(plain.model, plain.args, train_dataset=plain.train_dataset)
        RankAllocation(budget="r=2", **options).attach(trainer)
        trainer.train()
        assert (trainer.n, trainer.meter.n, trainer.pair[0]["n"]) == (12, 12, 12)
        assert int(trainer.centre.num_batches_tracked) == 12
        # Until the first cut, at step 10, both train alike.
        found.append((losses(trainer)[:10], trainer.queue[8:].tolist()))
    assert found[0] == found[1]


def test_items_of_an_iterator_are_not_taken_from_training(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, **STEPS)
    trainer.unlabelled = iter(range(100))
    usual = trainer.compute_loss
    trainer.compute_loss = lambda *args, **options: usual(*args, **options) * (1 + 0 * next(trainer.unlabelled))
    RankAllocation(budget="r=2", **IGU).attach(trainer)
    with pytest.raises(TrainingError, match=r"from the Trainer's iterator 'unlabelled'.*training-pass"):
        trainer.train()
    assert next(trainer.unlabelled) == 1


def test_a_large_tensor_that_the_loss_changes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorank.in_training.trainer_snapshot._COPIED", 10)
    trainer = tiny_trainer(tmp_path, **STEPS)
    trainer.queue, usual = torch.zeros(11), trainer.compute_loss
    trainer.compute_loss = lambda *args, **options: usual(*args, **options) + 0 * trainer.queue.add_(1).sum()
    RankAllocation(budget="r=2", **IGU).attach(trainer)
    with pytest.raises(TrainingError, match=r"changes a tensor of shape \(11,\) in place"):
        trainer.train()


def test_another_trainer_than_the_attached_one(tmp_path: Path) -> None:
    first = tiny_trainer(tmp_path, **STEPS)
    allocation = RankAllocation(budget="r=2", **IGU).attach(first)
    second = tiny_trainer(tmp_path, allocation, model=first.model, **STEPS)
    with pytest.raises(TrainingError, match="attached to was not called; does another Trainer train"):
        second.train()


def test_another_factor_is_the_same_loss(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, allocation := RankAllocation(budget="r=2", **IGU), **STEPS)
    usual = trainer.compute_loss
    trainer.compute_loss = lambda *args, **options: 7 * usual(*args, **options)
    trainer.train()
    assert allocation.plan.total_rank


def test_label_smoothing_and_a_loss_function_are_scored_when_attached(tmp_path: Path) -> None:
    plain = tiny_trainer(tmp_path / "plain", **STEPS)
    first = RankAllocation(budget="r=2", **IGU).attach(plain)
    plain.train()
    trainer = tiny_trainer(tmp_path / "smooth", label_smoothing_factor=0.3, **STEPS)
    second = RankAllocation(budget="r=2", **IGU).attach(trainer)
    trainer.train()
    trainer = tiny_trainer(tmp_path / "function", **STEPS)
    trainer.compute_loss_func = lambda outputs, labels, num_items_in_batch=None: cross_entropy(outputs.logits, labels)
    third = RankAllocation(budget="r=2", **IGU).attach(trainer)
    trainer.train()
    assert second.scores.fingerprint != first.scores.fingerprint
    for name, values in first.scores.scores.items():
        assert third.scores.scores[name] == pytest.approx(values, rel=1e-3)


class DictModel(nn.Module):
    """A model that returns a dict, or a tuple with the loss first."""

    def __init__(self, inner: nn.Module, kind: type) -> None:
        super().__init__()
        self.inner, self.kind, self.config = inner, kind, inner.config

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        outputs = self.inner(input_ids=input_ids, labels=labels)
        return {"loss": outputs.loss, "logits": outputs.logits} if self.kind is dict else (outputs.loss, outputs.logits)


@pytest.mark.parametrize("kind", [dict, tuple])
def test_a_model_that_returns_a_dict_or_a_tuple(kind: type, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    inner = tiny_trainer(tmp_path).model.unload()
    model = get_peft_model(DictModel(inner, kind), LoraConfig(r=4, target_modules=["query", "value"]))
    allocation = RankAllocation(budget="r=2", **IGU)
    tiny_trainer(tmp_path, allocation, model=model, **STEPS).train()
    assert allocation.plan.total_rank


def test_something_else_than_a_trainer_is_not_attached(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="SimpleLoop has no callback_handler"):
        RankAllocation("igu-lora", "r=2").attach(type("SimpleLoop", (), {})())
    trainer = tiny_trainer(tmp_path, RankAllocation("igu-lora", "r=2"))
    with pytest.raises(TrainingError, match="two RankAllocation callbacks"):
        RankAllocation("igu-lora", "r=2").attach(trainer)


def test_containers_and_counters_are_given_back() -> None:
    class Owner:
        def __init__(self) -> None:
            self.logs = {"train": defaultdict(list, loss=[1.0])}
            self.seen, self.tokens = [{"a": 1}], torch.tensor([3])
            self.weight = torch.ones(2, requires_grad=True)

    owner = Owner()
    logs, tokens, first = owner.logs, owner.tokens, owner.seen[0]
    product = (owner.weight * owner.tokens).sum()
    with trainer_as_before(owner):
        owner.logs["train"]["loss"].append(2.0)
        owner.logs["train"]["other"].append(5)
        owner.seen.append({})
        owner.seen[0]["a"] = 2
        owner.tokens = torch.tensor([9])
        owner.added = 1
    product.backward()  # an untouched tensor may still be needed by a backward pass
    with trainer_as_before(owner):
        tokens += 4
    assert owner.logs is logs
    assert owner.logs == {"train": {"loss": [1.0]}}
    assert owner.seen == [{"a": 1}]
    assert owner.seen[0] is first
    assert owner.tokens is tokens
    assert tokens.tolist() == [3]
    assert not hasattr(owner, "added")
