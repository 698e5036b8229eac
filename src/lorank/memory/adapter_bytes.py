"""What trains: adapters at their start and at their end, heads, their gradients, and the state of the optimizer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from lorank.budget import Budget
from lorank.errors import BudgetError, RecipeError
from lorank.models.base_size import base_parameters
from lorank.models.loading import head_modules
from lorank.models.trained_whole import trained_whole
from lorank.targets import Target, unit_costs

FP32 = 4  # PEFT keeps adapters in fp32, whatever the base is in, and so lorank's triplets
RECIPE_RANK = 8  # what a recipe starts with
_STEP = 4  # AdamW's count of steps, a tensor for each parameter tensor


@dataclass(frozen=True)
class Trained:
    """Parameters that train.

    Attributes:
        initial_ranks: module name -> rank before ranks are decided, in the model's order.
        triplets: whether each unit of rank has a λ.
        initial_parameters: of the adapter at its start, λ included.
        final_parameters: what the budget buys; the finished adapter has at most so many.
        head_parameters: of heads and other modules that train whole, as copies beside those of the base.
        head_tensors: number of their tensors.
        head_bytes: their size, in fp32 as recipes train them.

    """

    initial_ranks: Mapping[str, int]
    triplets: bool
    initial_parameters: int
    final_parameters: int
    head_parameters: int
    head_tensors: int
    head_bytes: int

    @property
    def units(self) -> int:
        """Units of rank at the start."""
        return sum(self.initial_ranks.values())

    @property
    def adapter_tensors(self) -> int:
        """Tensors of the adapter at its start: λ, P and Q of each module, or A and B."""
        return (3 if self.triplets else 2) * len(self.initial_ranks)

    def trained_bytes(self, parameters: int) -> int:
        """Of an adapter with so many parameters, and of heads."""
        return FP32 * parameters + self.head_bytes

    def optimizer_bytes(self, parameters: int, optimizer: str) -> int:
        """AdamW: two moments for each parameter in its dtype, and a count of 4 bytes for each tensor; SGD: nothing."""
        if optimizer == "sgd":
            return 0
        return 2 * self.trained_bytes(parameters) + _STEP * (self.adapter_tensors + self.head_tensors)


def trained_parameters(
    model: nn.Module,
    targets: Sequence[Target],
    budget: Budget,
    *,
    triplets: bool,
    initial_rank: int | None,
    modules_to_save: Sequence[str] | None = None,
) -> Trained:
    """Work out what trains.

    Without an initial rank it is a recipe's 8, or half as much again as the mean rank that the budget buys, where that is more.
    A module's is never above the smaller side of its matrix.

    Args:
        model: with its head.
        targets: layers that get adapters.
        budget: as it was asked for.
        triplets: whether ranks are decided while triplets train.
        initial_rank: at the start; of plain LoRA it says nothing.
        modules_to_save: modules that train whole, as recipes name them.

    Raises:
        RecipeError: of these modules one is not there, or holds a target.
        BudgetError: below one unit of rank, above the base model, or above what the initial ranks cost.

    """
    costs = unit_costs(targets)
    most = {target.name: target.max_rank for target in targets}
    rank = initial_rank or RECIPE_RANK
    asked = budget.parameters(costs, base_parameters=base_parameters(model), initial_rank=rank)
    mean = asked / sum(costs.values())
    if initial_rank is None and not budget.counts_units:
        rank = max(rank, math.ceil(1.5 * mean))
    ranks = {name: min(rank if triplets else max(1, math.ceil(mean)), most[name]) for name in costs}
    start = sum(costs[name] * units for name, units in ranks.items())
    if triplets and budget.counts_units:
        units = sum(ranks.values())
        asked = start * budget.units(units) // units
    if triplets and asked > start:
        raise BudgetError(
            f"budget {budget} is {asked:,} parameters, but the adapter starts with {start:,} (rank {rank}); raise the initial "
            "rank, best to half as much again as the budget's mean rank, or ask for less"
        )
    initial = start + sum(ranks.values()) if triplets else asked
    heads = list(trained_heads(model, modules_to_save))
    whole = {id(parameter) for parameter in heads}
    held = {t.name: t.name if t.experts else f"{t.name}.weight" for t in targets}
    if inside := [name for name, weight in held.items() if id(model.get_parameter(weight)) in whole]:
        raise RecipeError(f"{inside[0]!r} would be trained whole (modules_to_save), and is a target; exclude it")
    parameters = sum(parameter.numel() for parameter in heads)
    return Trained(ranks, triplets, initial, asked, parameters, len(heads), FP32 * parameters)


def trained_heads(model: nn.Module, modules_to_save: Sequence[str] | None = None) -> Sequence[nn.Parameter]:
    """Parameters of the head of a classifier, which trains whole, and of other modules that are to train whole."""
    inner: Any = model
    heads = head_modules(inner) if type(model).__name__.endswith("ForSequenceClassification") else ()
    names = (*heads, *trained_whole(model, modules_to_save, heads).names)
    return [parameter for name in names for parameter in inner.get_submodule(name).parameters()]
