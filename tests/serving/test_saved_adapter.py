"""The audit after saving: the file of an adapter against its plan."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tests.expert_models import make
from tests.serving.conftest import FAMILIES, plan_for
from tests.serving.test_adapter_files import edited, some

from lorank import RankPlan, check_saved_adapter
from lorank.errors import AdapterError, PlanError
from lorank.in_training.adapter_audit import audit_saves, check_saved
from lorank.targets import experts_in, find_targets


@pytest.fixture
def plan(bases: dict[str, Path]) -> Callable[[str], RankPlan]:
    return lambda name: plan_for(FAMILIES[name][0].from_pretrained(bases[name]))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_of_the_plan(name: str, plan: Any, trained: Any) -> None:
    """Mixed ranks, some 0; a head that was trained whole is not counted."""
    assert check_saved_adapter(trained(name), plan(name)) == plan(name).spent
    assert check_saved_adapter(str(trained(name)), plan(name)) == plan(name).spent


def test_a_plan_may_be_given_by_its_path(plan: Any, trained: Any, tmp_path: Path) -> None:
    plan("decoder").save(tmp_path / "plan.json")
    assert check_saved_adapter(trained("decoder"), tmp_path / "plan.json") == plan("decoder").spent
    with pytest.raises(PlanError, match="no such plan"):
        check_saved_adapter(trained("decoder"), str(tmp_path / "other.json"))
    with pytest.raises(PlanError, match="plan is dict; give"):
        check_saved_adapter(trained("decoder"), {})  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["mixtral", "gpt-oss"])
def test_an_adapter_of_experts(layout: str, tmp_path: Path) -> None:
    """Two parameters of a module of experts, whose keys do not name them; one that is not adapted in the second layer."""
    model: Any = make(layout)
    targets = find_targets(model, ["o_proj"], None, "all-experts")
    ranks = {target.name: 1 + number for number, target in enumerate(targets)}
    ranks["model.layers.1.mlp.experts.down_proj"] = 0
    costs = {target.name: target.unit_cost for target in targets}
    spent = sum(rank * costs[name] for name, rank in ranks.items())
    own = RankPlan(ranks, costs, "by hand", spent, provenance=experts_in(targets))
    adapted: Any = get_peft_model(model, own.lora_config(task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    audit_saves(adapted, own)
    adapted.save_pretrained(tmp_path / "adapter")
    assert check_saved_adapter(tmp_path / "adapter", own) == spent
    first, second = (name for name in own.experts if name.startswith("model.layers.0"))
    exchanged = replace(own, ranks={**ranks, first: ranks[second], second: ranks[first]}, budget_parameters=10**6)
    with pytest.raises(AdapterError, match=f"parameters of '{first}' .*the plan says .*and 1 more modules"):
        check_saved_adapter(tmp_path / "adapter", exchanged)
    config = tmp_path / "adapter" / "adapter_config.json"
    whole = config.read_text()
    config.write_text(whole.replace(f"^{first}$", "^elsewhere$"))
    with pytest.raises(AdapterError, match=f"for '{first}', the plan {ranks[first]}"):
        check_saved_adapter(tmp_path / "adapter", own)
    config.write_text(json.dumps({**json.loads(whole), "target_parameters": [first]}))
    with pytest.raises(AdapterError, match=r"does not name .* in target_parameters"):
        check_saved_adapter(tmp_path / "adapter", own)
    config.write_text(whole)
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    b = "base_model.model.model.layers.0.mlp.experts.lora_B.weight"
    save_file({**tensors, b: torch.zeros_like(tensors[b])}, path)
    with pytest.raises(AdapterError, match=r"lora_B of 'model\.layers\.0\.mlp\.experts\.\w+' is zero"):
        check_saved_adapter(tmp_path / "adapter", own)
    with pytest.raises(AdapterError, match=r"B of 'model\.layers\.0\.mlp\.experts\.\w+' is zero in it, and not"):
        check_saved(tmp_path / "adapter", own, adapted)


def shard(tensors: dict[str, torch.Tensor], ending: str, part: slice) -> None:
    key = some(tensors, ending)
    tensors[key] = tensors[key][part].clone()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: t[some(t, "lora_B.weight")].zero_(), "is zero in every entry (this module alone)"),
        (
            lambda c, t: [t[key].zero_() for key in t if ".lora_B." in key],
            "more modules), as before training",
        ),
        (lambda c, t: t.update({some(t, "lora_A.weight"): torch.empty(0)}), "is empty: a shard, not the tensor"),
        (lambda c, t: shard(t, "o_proj.lora_A.weight", slice(0, 1)), "has A of shape (1, 32) and B of shape (32, 3)"),
        (
            lambda c, t: shard(t, "down_proj.lora_B.weight", slice(0, 16)),
            "parameters of 'model.layers.0.mlp.down_proj' (A (",
        ),
        (
            lambda c, t: [t.pop(key) for key in list(t) if "layers.2.mlp.up_proj" in key],
            "holds 0 parameters of 'model.layers.2.mlp.up_proj', the plan says",
        ),
    ],
)
def test_what_a_sharded_training_can_leave(change: Any, message: str, plan: Any, trained: Any, tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        check_saved_adapter(edited(trained("decoder"), tmp_path / "adapter", change), plan("decoder"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_adapter_of_another_plan(plan: Any, trained: Any) -> None:
    """Ranks that were exchanged: as many parameters in all, and not the plan's."""
    own = plan("decoder")
    alike = [name for name in own.ranks if own.unit_costs[name] == own.unit_costs[next(iter(own.ranks))]]
    first, second = next((a, b) for a in alike for b in alike if 0 < own.ranks[a] < own.ranks[b])
    other = replace(own, ranks={**own.ranks, first: own.ranks[second], second: own.ranks[first]})
    assert other.spent == own.spent
    with pytest.raises(AdapterError, match=r"the plan says .* \(and 1 more modules\): the adapter of another plan"):
        check_saved_adapter(trained("decoder"), other)
    without = replace(own, ranks={**own.ranks, second: 0})
    with pytest.raises(AdapterError, match=rf"parameters of '{second}' \(.*\), the plan says 0, rank 0"):
        check_saved_adapter(trained("decoder"), without)
