"""What a model with a fresh adapter offers: initial ranks, costs, and whether the budget fits; before anything is trained."""

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from lorank.allocation.top_b import allocate
from lorank.budget import Budget
from lorank.errors import BudgetError
from lorank.scores import ImportanceScores
from lorank.training.cut_rules import Ground
from lorank.training.pruning import PruningOptions

VERSIONS = ("lorank", "torch", "transformers", "peft", "accelerate", "datasets", "numpy")


def survey(
    model: PeftModel,
    layers: Mapping[str, LoraLayer],
    adapter_name: str,
    budget: Budget,
    limits: Mapping[str, Any],
    options: PruningOptions,
    provenance: Mapping[str, Any],
) -> Ground:
    """Read ranks, costs and scale off the adapter's layers, and try the limits on equal scores.

    Raises:
        BudgetError: above what the initial ranks cost, or below one unit.
        AllocationError: limits that contradict each other.

    """
    ranks = {name: int(layer.r[adapter_name]) for name, layer in layers.items()}
    costs = {name: int(layer.in_features + layer.out_features) for name, layer in layers.items()}
    size = base_size(model.get_base_model())
    highest = max(ranks.values())
    parameters = budget.parameters(costs, base_parameters=size, initial_rank=highest)
    start = sum(ranks[name] * cost for name, cost in costs.items())
    if parameters > start:
        raise BudgetError(
            f"budget {budget} is {parameters:,} parameters, but the adapter starts with {start:,} (rank {highest}); raise r of "
            "its LoraConfig, best to half as much again as the budget's mean rank, or ask for less"
        )
    scalings = [float(layer.scaling[adapter_name]) for layer in layers.values()]
    found = {
        "model": getattr(getattr(model, "config", None), "_name_or_path", "") or type(model.get_base_model()).__name__,
        "base_parameters": size,
        "pruning": options.model_dump(mode="json"),
        "versions": {name: version(name) for name in VERSIONS},
    }
    ground = Ground(ranks, costs, str(budget), parameters, limits, max(scalings), {**found, **provenance})
    if options.budget_in == "parameters":
        equal = ImportanceScores({name: np.ones(rank) for name, rank in ranks.items()}, costs)
        allocate(equal, parameters, **limits)
    return ground


def base_size(base: nn.Module) -> int:
    """Parameters of the base model: no adapters, no head that is trained whole."""
    total = 0
    for name, parameter in base.named_parameters():
        if ".lora_" in name or "modules_to_save." in name or "original_module." in name:
            continue
        # bitsandbytes packs two 4-bit weights into a byte.
        total += parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1)
    return total
