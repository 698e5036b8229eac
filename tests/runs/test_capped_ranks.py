"""Gates with one output: a rank above the smaller side of a layer is capped, in adapters that train and in recipes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from peft import LoraConfig, TaskType, get_peft_model
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen2MoeForSequenceClassification,
)

import lorank
from lorank.errors import LorankWarning, TargetError
from lorank.models.task_model import TaskModel
from lorank.recipe.files import make_recipe
from lorank.recipe.recipe import Recipe
from lorank.runs.checks import allocate_for, check_model, equal_scores
from lorank.training.stage import initial_config

CONFIG = Qwen2MoeConfig(
    vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, intermediate_size=32,
    moe_intermediate_size=8, shared_expert_intermediate_size=8, num_experts=2, num_experts_per_tok=1, pad_token_id=0,
)  # fmt: skip
GATE = "model.layers.0.mlp.shared_expert_gate"


def test_allocation_in_training_starts_a_gate_at_what_it_can_have() -> None:
    model = get_peft_model(
        Qwen2MoeForCausalLM(CONFIG), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    allocation = lorank.RankAllocation("igu-lora", "r=2")
    with pytest.warns(LorankWarning, match=rf"'{GATE}' cannot have the rank .* 4 to 1"):
        allocation.prepare(model)
    assert allocation._adapter is not None
    ranks = dict(zip(allocation._adapter.names, allocation._adapter.ranks, strict=True))
    assert ranks == allocation._initial.ranks
    assert (ranks[GATE], max(ranks.values())) == (1, 4)


@pytest.mark.parametrize("method", ["i-lora", "igu-lora", "lora", "sensitivity-lora"])
def test_recipes_cap_the_rank_of_a_gate(method: str, tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    model = Qwen2MoeForSequenceClassification(CONFIG)
    model.save_pretrained(tmp_path)
    recipe = tiny_recipe(
        model=str(tmp_path), method=method, target_modules="all-linear", budget="r=4", triplets={"initial_rank": 6}
    )
    targets, provenance = check_model(recipe, (method,))
    assert provenance["model_type"] == "qwen2_moe"
    plan = allocate_for(recipe, equal_scores(recipe, targets, provenance))
    assert 0 <= plan.ranks[GATE] <= 1
    assert max(plan.ranks.values()) >= 4
    assert plan.budget_parameters - plan.spent < max(plan.unit_costs.values())
    task = TaskModel(model, ("score",), TaskType.SEQ_CLS)
    started = get_peft_model(model, initial_config(targets, task, rank=6, scale=recipe.scale, dropout=0.0))
    layers = {t.name: started.get_base_model().get_submodule(t.name) for t in targets}
    assert {name: layer.r["default"] for name, layer in layers.items()} == {
        t.name: min(6, t.d_in, t.d_out) for t in targets
    }
    assert {layer.scaling["default"] for layer in layers.values()} == {recipe.scale}


def test_a_recipe_refuses_what_peft_forbids_as_targets(tiny_data: dict[str, str], tmp_path: Path) -> None:
    MambaForCausalLM(MambaConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, state_size=4)).save_pretrained(
        tmp_path
    )
    content = {
        "model": str(tmp_path),
        "budget": "r=1",
        "data": {**tiny_data, "task": "boolq"},
    }
    with pytest.raises(TargetError, match=r"'backbone\.layers\.0\.mixer\.out_proj' is refused by PEFT"):
        check_model(make_recipe({**content, "target_modules": ["out_proj"]}), ("i-lora",))
    with pytest.warns(LorankWarning, match="3 linear layers are left out"):
        targets, _ = check_model(make_recipe({**content, "target_modules": "all-linear"}), ("i-lora",))
    assert [target.name for target in targets] == ["backbone.layers.0.mixer.in_proj"]
