"""`lorank run` with parameters of fused experts among the targets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.conftest import save_tiny
from tests.expert_models import make
from transformers import AutoModelForCausalLM

from lorank.errors import AdapterError, RecipeError
from lorank.headroom.measure import measure_headroom
from lorank.recipe.recipe import Recipe
from lorank.runs.run import run
from lorank.serving.merge import merge
from lorank.serving.verify import verify
from lorank.training.plan_stage import adapter_parameters

TRAIN = {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-2}
EXPERTS: dict[str, Any] = {"target_modules": ["o_proj"], "target_parameters": "all-experts"}


@pytest.mark.parametrize("layout", ["mixtral", pytest.param("gpt-oss", marks=pytest.mark.long)])
def test_a_run_scores_allocates_trains_and_merges_experts(
    layout: str, recipe_on: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path
) -> None:
    base = save_tiny(make(layout), tiny_folder, tmp_path / "base", eos_token="[SEP]")
    recipe = recipe_on("gradient", {"name": str(base)}, **EXPERTS, measure={"examples": 4}, train=TRAIN)
    result = run(recipe, tmp_path / "run")
    adapter, plan = tmp_path / "run" / "adapter", result.plan
    assert any(rank for name, rank in plan.ranks.items() if name in plan.experts)
    assert adapter_parameters(adapter) == plan.spent == result.results["gradient"]["adapter_parameters"]
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert set(config["target_parameters"]) == {name for name in plan.experts if plan.ranks[name]}
    with pytest.raises(AdapterError, match=r"target_parameters is on: expert tensors .*lorank merge"):
        verify(adapter)
    merge(adapter, tmp_path / "merged")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        one: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
        two: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(two(input_ids=ids).logits, one(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("igu-lora", {}, "method 'igu-lora' cuts triplets of linear layers alone"),
        ("sensitivity-lora", {}, "estimator 'gram' looks at what goes into linear layers"),
        ("gradient", {"baselines": ["i-lora"]}, "baselines.i-lora.*method 'i-lora' cuts triplets"),
        ("lora", {"lora_dropout": 0.1}, "lora_dropout: cannot be had for target_parameters"),
    ],
)
def test_recipes_that_experts_do_not_fit_are_refused(
    method: str, changes: dict[str, Any], said: str, recipe_on: Callable[..., Recipe]
) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe_on(method, **EXPERTS, **changes)


def test_trainings_side_by_side_refuse_experts(recipe_on: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="target_parameters: trainings side by side"):
        measure_headroom(recipe_on("lora", **EXPERTS), tmp_path / "headroom")
