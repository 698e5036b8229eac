"""Make a trained LoRA adapter smaller: its triplets, scored and cut to a budget, and what that cost in loss."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from lorank.adapter.convert import adapted_layers, fold_to_lora, starting_rank, to_triplets
from lorank.adapter.shrink import shrink
from lorank.adapter.triplet import TripletAdapter
from lorank.allocation.budgeted import allocate
from lorank.allocation.top_b import RankBy, best_units, uniform_scores
from lorank.artefact import versions
from lorank.budget import Budget
from lorank.engine.options import PathScoreOptions
from lorank.engine.path import PathScorer
from lorank.engine.smoother import RunningSmoother
from lorank.errors import AdapterError, BudgetError, DataError, LorankWarning
from lorank.models.base_size import base_parameters
from lorank.plan import RankPlan
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, SummedLoss, on_device_of, summed_loss
from lorank.scoring.undisturbed import undisturbed
from lorank.unsuitable import model_type_of

By = Literal["path", "svd"]


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Attributes:
        plan: ranks that were kept, within the budget.
        scores: of the triplets that there were; unit i is singular direction i, the largest first.
        loss_before: mean loss on the batches before; None without batches.
        loss_after: the same after.

    """

    plan: RankPlan
    scores: ImportanceScores
    loss_before: float | None
    loss_after: float | None


def prune(
    model: PeftModel,
    budget: str | int | Budget,
    dataloader: Iterable[Batch] | None = None,
    *,
    by: str | None = None,
    intervals: int = 4,
    loss: SummedLoss = summed_loss,
    max_rank: int | None = None,
    min_rank: int = 0,
    multiple_of: int = 1,
    rank_by: RankBy = "score",
) -> Pruned:
    """Cut a trained LoRA adapter down to a budget, in place; it stays a plain, compact PEFT LoRA.

    Every `B A` is split into triplets `U diag(σ) Vᵀ`. A triplet scores

    - by `"path"` its share of the loss that the adapter takes away, `-σ_i ∫ ∂L/∂λ_i dα` along `λ = α σ` (midpoint rule; the
      shares of all triplets add up to `L(0) - L(1)`), the mean over the targets of all batches;
    - by `"svd"` its energy in `dW`, `(scale σ_i)²`: needs no data, and does not know the loss.

    What is kept is the best that the budget pays for, as `lorank.allocate` cuts; nothing is trained again.

    Args:
        model: with one active LoRA adapter, trained.
        budget: see `lorank.Budget`.
        dataloader: batches with labels, held in memory because they are looked at several times. Needed by `"path"`; with
            `"svd"` it is used for the losses alone.
        by: None is `"path"` with batches and `"svd"` without.
        intervals: of the path, for `"path"`: that many forward and backward passes a batch.
        loss: as in `lorank.score`.
        max_rank: as in `lorank.allocate`.
        min_rank: as in `lorank.allocate`.
        multiple_of: as in `lorank.allocate`.
        rank_by: as in `lorank.allocate`.

    Raises:
        AdapterError: no LoRA, DoRA, merged, or layers that have no triplets.
        BudgetError: below one unit, or no less than the adapter has.
        DataError: no batches for `"path"`.

    """
    by = choose_score(by, data=dataloader is not None)
    if not isinstance(model, PeftModel) or len(model.active_adapters) != 1:
        raise AdapterError("there is no single active adapter to prune; give a PeftModel with one LoRA adapter active")
    name = model.active_adapters[0]
    layers = adapted_layers(model, name)
    if not any(bool(layer.lora_B[name].weight.any()) for layer in layers.values()):
        raise AdapterError(
            f"adapter {name!r} is not trained yet (every B is 0); lorank.score plans ranks before training"
        )
    if all(float(layer.lora_B[name].weight.detach().abs().max()) < 1e-30 for layer in layers.values()):
        warnings.warn(
            f"no entry of any B of adapter {name!r} is above 1e-30, so it hardly does anything; was it trained?",
            LorankWarning,
            stacklevel=2,
        )
    limits: dict[str, Any] = {
        "max_rank": max_rank,
        "min_rank": min_rank,
        "multiple_of": multiple_of,
        "rank_by": rank_by,
    }
    size = base_parameters(model)
    _check_budget(layers, name, Budget.parse(budget), size, limits)
    batches: Sequence[Batch] = [on_device_of(model, batch) for batch in dataloader or ()]
    if by == "path" and not batches:
        raise DataError("pruning by 'path' looks at the loss, and the loader gave no batch; give at least one")
    before = mean_loss(model, batches, loss)
    if batches and before is None:
        raise DataError("not one label of the batches counts (all are -100); give labelled examples")
    scale = max(float(layer.scaling[name]) for layer in layers.values())
    adapter = to_triplets(model, name)
    found = {"model": getattr(getattr(model, "config", None), "_name_or_path", ""), "method": f"prune by {by}"}
    found |= {"model_type": model_type_of(model.get_base_model()), "base_parameters": size, "versions": versions()}
    try:
        scores = _energies(adapter, found) if by == "svd" else _shares(model, adapter, batches, intervals, loss, found)
        plan = allocate(scores, budget, scale=scale, **limits)
        shrink(adapter, {m: torch.from_numpy(best_units(scores.scores[m], rank)) for m, rank in plan.ranks.items()})
    finally:  # also where something failed: a plain LoRA of the same function again
        fold_to_lora(model, adapter, scale)
    return Pruned(plan, scores, before, mean_loss(model, batches, loss))


def choose_score(by: str | None, *, data: bool) -> str:
    """What triplets are scored by: as asked, else by path where there is data.

    Raises:
        AdapterError: no such score.
        DataError: a score that needs data, and there is none.

    """
    if by not in (None, *get_args(By)):
        raise AdapterError(f"by is {by!r}; allowed: {', '.join(map(repr, get_args(By)))}")
    if by == "path" and not data:
        raise DataError("pruning by 'path' looks at the loss and needs data with labels; give it, or use 'svd'")
    return by or ("path" if data else "svd")


def _check_budget(
    layers: Mapping[str, LoraLayer], name: str, budget: Budget, base_parameters: int, limits: Mapping[str, Any]
) -> None:
    """Refuse a budget that prunes nothing, and try the limits on equal scores, before the adapter is touched."""
    ranks = {module: int(layer.r[name]) for module, layer in layers.items()}
    costs = {module: int(layer.in_features + layer.out_features) for module, layer in layers.items()}
    units = {module: starting_rank(layer, name) for module, layer in layers.items()}
    asked: Budget | int = budget
    if budget.counts_units:
        total = sum(units.values())
        if budget.units(total) >= total:
            raise BudgetError(f"budget {budget} keeps all {total:,} units of rank: nothing is to prune; ask for less")
    else:
        held = sum(rank * costs[module] for module, rank in ranks.items())
        asked = budget.parameters(costs, base_parameters=base_parameters)
        if asked >= held:
            raise BudgetError(
                f"budget {budget} is {asked:,} parameters, and the adapter has only {held:,}: nothing is to prune; ask for less"
            )
    allocate(uniform_scores(costs, units), asked, **limits)


def mean_loss(model: PeftModel, batches: Sequence[Batch], loss: SummedLoss = summed_loss) -> float | None:
    """Mean loss of all targets of the batches; None without batches."""
    total, counted = 0.0, 0
    with undisturbed(model), torch.no_grad():
        for batch in batches:
            summed, counts = loss(model, batch)
            total, counted = total + float(summed), counted + int(counts.sum())
    return total / counted if counted else None


def _energies(adapter: TripletAdapter, provenance: dict[str, Any]) -> ImportanceScores:
    values = {
        module: (lambdas.detach().double() * layer.scaling[adapter.adapter_name]).square().cpu().numpy()
        for module, lambdas, layer in zip(adapter.names, adapter.lambdas, adapter.layers, strict=True)
    }
    return ImportanceScores(values, _costs(adapter), None, provenance)


def _shares(
    model: PeftModel,
    adapter: TripletAdapter,
    batches: Sequence[Batch],
    intervals: int,
    loss: SummedLoss,
    provenance: dict[str, Any],
) -> ImportanceScores:
    options = PathScoreOptions(nodes="midpoint", intervals=intervals, draw="sweep", parameter_factor="signed")

    counted = 0

    def summed(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        nonlocal counted
        total, counts = loss(model, batch)
        counted += int(counts.sum())
        return total

    scorer, accumulated = PathScorer(model, adapter, options, loss=summed), RunningSmoother("sum")
    for number, batch in enumerate(batches):
        accumulated.add([scorer.batch_scores(batch, number)])
    targets = counted / scorer.passes_per_batch
    errors = accumulated.standard_errors()
    made = {**provenance, "scoring": options.model_dump(mode="json"), "batches": len(batches)}
    return ImportanceScores(
        _by_module(adapter, accumulated.scores()[0] / targets),
        _costs(adapter),
        None if errors is None else _by_module(adapter, errors[0] / targets),
        made,
    )


def _by_module(adapter: TripletAdapter, values: torch.Tensor) -> dict[str, np.ndarray]:
    parts = values.double().cpu().split(list(adapter.ranks))
    return {module: part.numpy() for module, part in zip(adapter.names, parts, strict=True)}


def _costs(adapter: TripletAdapter) -> dict[str, int]:
    return {
        n: int(layer.in_features + layer.out_features) for n, layer in zip(adapter.names, adapter.layers, strict=True)
    }
