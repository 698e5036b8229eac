"""What an adapter offers before anything is trained, where a gate with one output has rank 1 and not 6."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from lorank.budget import Budget
from lorank.engine.cut_rules import InitialAdapter
from lorank.engine.initial_adapter import read_adapter
from lorank.errors import BudgetError
from lorank.methods.choose import choose_options


class Block(nn.Module):
    """Attention, MLP and gate of 16 inputs: units cost 32, 64 and 17."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.q, self.up = nn.Linear(16, 1), nn.Linear(16, 16), nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.q(x)) * self.gate(x)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])


def read(budget: str, method: str = "adalora", preset: str = "paper", **options: Any) -> InitialAdapter:
    model: PeftModel = get_peft_model(Blocks(), LoraConfig(r=6, target_modules=["gate", "q", "up"]))  # type: ignore[arg-type]
    base = model.get_base_model()
    layers = {name: part for name, part in base.named_modules() if isinstance(part, LoraLayer)}
    return read_adapter(
        model, layers, "default", Budget.parse(budget), choose_options(method, preset, options).choices, {}
    )


@pytest.mark.parametrize(
    ("budget", "units", "parameters"),
    # 2 x (6 + 6 + 1) = 26 units, which cost 2 x (6·32 + 6·64 + 17) = 1,186.
    [("keep=100%", 26, 1186), ("beta=0.04", 25, 1186 * 25 // 26), ("keep=50%", 13, 593)],
)
@pytest.mark.parametrize(
    ("method", "preset"), [("adalora", "recommended"), ("igu-lora", "official"), ("i-lora", "paper")]
)
def test_a_share_is_of_the_units_that_there_are(method, preset, budget: str, units: int, parameters: int) -> None:
    found = read(budget, method, preset)
    assert sum(found.ranks.values()) == 26
    assert (found.asked.units(26), found.parameters) == (units, parameters)


def test_a_unit_is_paid_for_though_a_dearer_one_stands_first() -> None:
    """By the rule of IGU-LoRA's code a unit of the gate takes (16 + 1)/2 = 8.5, one of up (3 + 1)/2 = 2, and one of q 1."""
    assert read("rank=5", "igu-lora", "official").weights["layers.0.gate"] == 8.5
    with pytest.raises(BudgetError, match="below one unit of rank"):
        read("rank=0.5", "igu-lora", "official")


def test_more_than_there_is_is_refused() -> None:
    with pytest.raises(BudgetError, match=r"is 1,356 parameters, but the adapter starts with 1,186"):
        read("r=6")
