"""Optimizers by transformers' names: those that can be cut, those for fixed ranks, and why the others are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

from lorank.errors import RecipeError
from lorank.findings import SeveralFindings
from lorank.recipe.optimizers import CUT_WITH_RANKS, OPTIMIZERS, cannot_be_cut, known_optimizer
from lorank.recipe.sections import TrainingSection
from lorank.runs.run import run
from lorank.training.stacked_training import trained_otherwise

QUIET = Console(quiet=True)
LONG = {"max_steps": 20, "batch_size": 8, "learning_rate": 1e-3}


def test_names_are_transformers_names_and_the_others_are_refused_with_a_reason() -> None:
    names = [name.value for name in OptimizerNames]
    assert set(OPTIMIZERS) <= set(names)
    for name in set(names) - set(OPTIMIZERS):
        with pytest.raises(ValueError, match=r"allowed: adamw_torch, "):
            known_optimizer(name)
    with pytest.raises(RecipeError, match=r"optimizer: .*'galore_adamw' is not for adapters \(projects gradients"):
        _section(optimizer="galore_adamw")
    with pytest.raises(RecipeError, match=r"'adamw_torh' is unknown \(did you mean adamw_torch\?\)"):
        _section(optimizer="adamw_torh")


def _section(**values: Any) -> Any:
    from lorank.recipe.files import make_recipe

    data = {"train": "a.tsv", "test": "b.tsv"}
    return make_recipe({"model": "some/model", "method": "lora", "budget": "r=1", "data": data, "train": values}).train


@pytest.mark.parametrize("name", CUT_WITH_RANKS)
def test_state_of_those_that_can_be_cut_has_the_shape_of_the_parameter(name: str, tmp_path: Path) -> None:
    kind, options = Trainer.get_optimizer_cls_and_kwargs(TrainingArguments(str(tmp_path), optim=name))
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = kind([weight], **options)
    weight.sum().backward()
    optimizer.step()
    state = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    assert all(value.shape == weight.shape or value.numel() == 1 for value in state)


@pytest.mark.parametrize("name", ["sgd", "rmsprop"])
def test_ranks_are_cut_under_an_optimizer_that_is_not_adam(name: str, tiny_recipe: Any, tmp_path: Path) -> None:
    """A LorankWarning, an error in the tests, would say that state was lost."""
    recipe = tiny_recipe(method="igu-lora", train={**LONG, "optimizer": name}, measure={"every": 1})
    result = run(recipe, tmp_path / "out", QUIET)
    assert result.results["igu-lora"]["adapter_parameters"] == result.plan.spent
    saved = torch.load(tmp_path / "out" / "train" / "checkpoint-20" / "optimizer.pt", weights_only=True)
    assert len(saved["param_groups"]) == 2


def test_a_plan_trains_with_a_factored_optimizer(tiny_recipe: Any, tmp_path: Path) -> None:
    adapters = []
    for name in ("adafactor", None):
        run(tiny_recipe(method="lora", train={"optimizer": name}), tmp_path / str(name), QUIET)
        adapters.append(load_file(tmp_path / str(name) / "adapter" / "adapter_model.safetensors"))
    assert any(not torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])


def test_where_ranks_are_cut_others_are_refused_before_training(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        method="lora", baselines=["adalora", "full"], train={**LONG, "optimizer": "adafactor", "loraplus_lr_ratio": 16}
    )
    with pytest.raises(SeveralFindings) as caught:
        run(recipe, tmp_path / "out", QUIET)
    said = "\n".join(map(str, caught.value.errors))
    assert "baselines.adalora.train.optimizer: adafactor keeps state that is not known to be cut with the ranks" in said
    assert "give one of adamw_torch," in said
    assert "full a train section with loraplus_lr_ratio=null" in said
    assert not (tmp_path / "out").exists()
    assert cannot_be_cut(None) is None
    with pytest.raises(
        RecipeError, match=r"search\.loraplus_lr_ratio: this stage of i-lora trains triplets, not A and B"
    ):
        run(tiny_recipe(train={"loraplus_lr_ratio": 16}), tmp_path / "out", QUIET)


def test_lora_plus_is_pefts_groups_with_another_rate_for_b(tiny_recipe: Any, tmp_path: Path) -> None:
    recipe = tiny_recipe(method="lora", train={"loraplus_lr_ratio": 4, "scheduler": "constant", "warmup": 0})
    run(recipe, tmp_path / "out", QUIET)
    (state,) = (tmp_path / "out" / "train").glob("checkpoint-10/optimizer.pt")
    groups = torch.load(state, weights_only=True)["param_groups"]
    assert [round(group["lr"] / 1e-2, 6) for group in groups if group["params"]] == [1, 4, 4]


def test_trainings_side_by_side_say_what_they_train_by() -> None:
    assert trained_otherwise(TrainingSection()) == []
    said = trained_otherwise(TrainingSection(optimizer="lion_8bit", loraplus_lr_ratio=4))
    assert said == [
        "optimizer lion_8bit and LoRA+: adapters that train side by side train by AdamW at one learning rate"
    ]
    (said,) = trained_otherwise(TrainingSection(on_nonfinite="skip"))
    assert said.startswith("on_nonfinite skip: adapters that train side by side leave no step out")
