"""The audit after saving: the file of an adapter against its plan."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.conftest import FAMILIES, plan_for
from tests.serving.test_adapter_files import edited, some

from lorank import RankPlan, check_saved_adapter
from lorank.errors import AdapterError


@pytest.fixture
def plan(bases: dict[str, Path]) -> Callable[[str], RankPlan]:
    return lambda name: plan_for(FAMILIES[name][0].from_pretrained(bases[name]))


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_of_the_plan(name: str, plan: Any, trained: Any) -> None:
    """Mixed ranks, some 0; a head that was trained whole is not counted."""
    assert check_saved_adapter(trained(name), plan(name)) == plan(name).spent
    assert check_saved_adapter(str(trained(name)), plan(name)) == plan(name).spent


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
            "parameters of 'model.layers.0.mlp.down_proj', the plan says",
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
    with pytest.raises(AdapterError, match=f"parameters of '{second}', the plan says 0"):
        check_saved_adapter(trained("decoder"), without)
