"""Parameters of fused experts as targets: found, planned, adapted by PEFT, saved, loaded and merged."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaConfig, LlamaForCausalLM

import lorank
from lorank.errors import AdapterError, PlanError, RecipeError, TargetError
from lorank.experts import adapted_name
from lorank.models.task_model import experts_patterns_are_known
from lorank.plan import WITH_EXPERTS, RankPlan
from lorank.targets import experts_in, find_targets, unit_costs
from lorank.training.plan_stage import adapter_parameters
from lorank.unsuitable import model_type_of
from tests.expert_models import LAYOUTS, batches, make

IDS = batches(2)[0]["input_ids"]


def planned(model: Any) -> RankPlan:
    """Another rank for each target, 0 for one parameter of experts."""
    targets = find_targets(model, ["o_proj"], target_parameters="all-experts")
    ranks = {target.name: 1 + number for number, target in enumerate(targets)}
    ranks[targets[-2].name] = 0
    chosen = {"targets": ["o_proj"], "target_parameters": "all-experts", "model_type": model_type_of(model)}
    costs = unit_costs(targets)
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    return RankPlan(ranks, costs, str(spent), spent, provenance={**chosen, **experts_in(targets)})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_experts_are_targets_where_they_are_asked_for(layout: str) -> None:
    model = make(layout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lorank.LorankWarning)  # DeepSeek's dense layers are left out
        assert not any(target.experts for target in find_targets(model))
    found = find_targets(model, [], target_parameters="all-experts")
    blocks = (1,) if layout == "deepseek" else (0, 1)
    leaves = ("gate_up_proj", "down_proj")
    assert [target.name for target in found] == [
        f"model.layers.{block}.mlp.experts.{leaf}" for block in blocks for leaf in leaves
    ]
    for target in found:
        up = target.name.endswith("gate_up_proj")
        assert (target.d_in, target.d_out) == ((16, 24) if up else (12, 16))
        assert target.unit_cost == 4 * (target.d_in + target.d_out)
        assert target.transposed is (layout == "gpt-oss")
        shape = tuple(model.get_parameter(target.name).shape)
        assert shape == (4, *((target.d_in, target.d_out) if target.transposed else (target.d_out, target.d_in)))


def test_experts_are_chosen_by_names_or_an_expression() -> None:
    model = make("mixtral")
    down = ["model.layers.0.mlp.experts.down_proj", "model.layers.1.mlp.experts.down_proj"]
    for chosen in (["experts.down_proj"], ["down_proj"], down, r".*\.down_proj"):
        assert [target.name for target in find_targets(model, [], target_parameters=chosen)] == down
    found = find_targets(model, ["q_proj"], target_parameters=down[:1])
    assert [(target.name, target.experts) for target in found][2:] == [(down[0], 4)]


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (
            ["experts.gate_up"],
            r"match no parameter of experts \(did you mean gate_up_proj\?\).*'all-experts' takes all",
        ),
        ("all-expert", r"did you mean all-experts\?"),
        ([], "match no parameter"),
        ("(", "is not a regular expression"),
    ],
)
def test_names_that_are_no_experts_are_refused(chosen: Any, said: str) -> None:
    with pytest.raises(TargetError, match=said):
        find_targets(make("mixtral"), target_parameters=chosen)


def test_a_model_without_fused_experts_says_so() -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(TargetError, match="LlamaForCausalLM has no parameter that holds several experts"):
        find_targets(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)), target_parameters="all-experts")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_peft_trains_saves_loads_and_merges_what_the_plan_says(layout: str, tmp_path: Path) -> None:
    model = make(layout)
    plan = planned(model)
    plan.check_model(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with experts_patterns_are_known():
            adapted: Any = get_peft_model(model, plan.lora_config(task_type="CAUSAL_LM"))
    layers = {n: layer for n, layer in adapted.get_base_model().named_modules() if isinstance(layer, LoraLayer)}
    ranks = {adapted_name(name, layer): layer.r["default"] for name, layer in layers.items()}
    assert ranks == {name: rank for name, rank in plan.ranks.items() if rank}
    assert {layer.scaling["default"] for layer in layers.values()} == {plan.scale}
    assert sum(each.numel() for each in adapted.parameters() if each.requires_grad) == plan.spent
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], 0.5)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    adapted.save_pretrained(tmp_path)
    assert adapter_parameters(tmp_path) == plan.spent
    with torch.no_grad():
        trained, base = adapted(input_ids=IDS).logits, make(layout)(input_ids=IDS).logits
        again: Any = PeftModel.from_pretrained(make(layout), str(tmp_path)).eval()
        assert torch.equal(again(input_ids=IDS).logits, trained)
        merged = again.merge_and_unload(safe_merge=True)(input_ids=IDS).logits
    assert float((trained - base).abs().max()) > 1e-3
    torch.testing.assert_close(merged, trained, atol=1e-5, rtol=1e-5)


def test_a_plan_with_experts_is_saved_in_a_format_of_its_own(tmp_path: Path) -> None:
    model = make("mixtral")
    plan = planned(model)
    plan.save(tmp_path / "plan.json")
    assert json.loads((tmp_path / "plan.json").read_text())["version"] == WITH_EXPERTS
    loaded = RankPlan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert loaded.experts == dict.fromkeys((name for name in plan.ranks if "experts" in name), 4)
    with pytest.raises(PlanError, match=r"the plan is for another model: .*experts"):
        loaded.check_model(make("deepseek"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout=0.1 cannot be had for parameters of experts"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' reads the weight of a linear layer"),
        ({"target_parameters": ["experts.down_proj"]}, "adapts tensors that are not in the plan"),
    ],
)
def test_options_that_experts_cannot_have_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        planned(make("mixtral")).lora_config(**options)


def test_a_rank_is_allocated_within_an_exact_budget() -> None:
    scores = lorank.score(make("gpt-oss"), method="magnitude", targets=["o_proj"], target_parameters="all-experts")
    plan = lorank.allocate(scores, "r=2", max_rank=4)
    costs = {"o_proj": 32, "gate_up_proj": 160, "down_proj": 112}
    assert plan.budget_parameters == 2 * 2 * sum(costs.values())
    by_hand = sum(
        rank * next(cost for leaf, cost in costs.items() if name.endswith(leaf)) for name, rank in plan.ranks.items()
    )
    assert plan.spent == by_hand <= plan.budget_parameters
    assert len(plan.experts) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "estimator 'gram' looks at what goes into linear layers"),
        ({"preset": "paper", "estimator": "kfac"}, "estimator 'kfac'"),
        ({"method": "eva"}, "method 'eva' looks at linear layers alone"),
        (
            {"method": "probe", "steps": 8, "learning_rate": 0.01},
            r"decided before training, by sensitivity-lora \(estimator",
        ),
    ],
)
def test_scores_that_look_into_layers_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        lorank.score(make("mixtral"), batches(2), target_parameters="all-experts", **options)


def test_allocation_in_training_refuses_experts() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    adapted = get_peft_model(make("mixtral"), config)
    with pytest.raises(
        AdapterError, match=r"experts\.(gate_up|down)_proj' is a parameter of experts .* score before training"
    ):
        lorank.AllocationLoop(adapted, "igu-lora", "r=1", steps=20)
