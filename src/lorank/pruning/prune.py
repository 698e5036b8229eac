"""Make a trained LoRA adapter smaller: its triplets, scored and cut to a budget, and what that cost in energy and loss."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

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
from lorank.errors import AdapterError, BudgetError, DataError, LorankWarning
from lorank.models.base_size import base_parameters
from lorank.module_names import is_adapter_tensor
from lorank.plan import RankPlan
from lorank.pruning.budgets import pruning_budget
from lorank.pruning.energy import KeptEnergy, triplet_energies
from lorank.pruning.triplet_scores import choose_score, energy_scores, path_scores
from lorank.scores import ImportanceScores
from lorank.scoring.batches import Batch, SummedLoss, on_device_of, summed_loss
from lorank.scoring.undisturbed import undisturbed
from lorank.unsuitable import model_type_of


@dataclass(frozen=True)
class Pruned:
    """What pruning left.

    Attributes:
        plan: ranks that were kept, within the budget.
        scores: of the triplets that there were; unit i is singular direction i, the largest first.
        energy: the share of the squared singular values of the updates that was kept, whole and of each module.
        loss_before: mean loss on the batches before; None without batches.
        loss_after: the same after.
        loss_by_svd: what it would have been after a cut by `"svd"`; None where that is the cut, or without batches.

    """

    plan: RankPlan
    scores: ImportanceScores
    energy: KeptEnergy
    loss_before: float | None
    loss_after: float | None
    loss_by_svd: float | None = None


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
        budget: see `lorank.Budget`; also `"half"` (of the adapter's parameters) and `"keep=0.5"` (of its units of rank).
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
    limits = {"max_rank": max_rank, "min_rank": min_rank, "multiple_of": multiple_of, "rank_by": rank_by}
    work = _Work.begin(model, (budget,), dataloader, by, loss, limits)
    adapter = to_triplets(model, work.name)
    try:
        scored = work.score(model, adapter, intervals)
        by_svd = work.loss_by_svd(model, adapter, work.budgets[0])
        plan, energy = work.cut(adapter, scored, work.budgets[0])
    finally:  # also where something failed: a plain LoRA of the same function again
        fold_to_lora(model, adapter, work.scale)
    return Pruned(plan, scored, energy, work.loss_before, mean_loss(model, work.batches, loss), by_svd)


def pruned_copies(
    model: PeftModel,
    budgets: Sequence[str | int | Budget],
    dataloader: Iterable[Batch] | None = None,
    *,
    by: str | None = None,
    intervals: int = 4,
    loss: SummedLoss = summed_loss,
    **limits: Any,
) -> Iterator[tuple[PeftModel, Pruned]]:
    """The same for several budgets, with one scoring; `model` stays as it is.

    Budgets are checked and triplets are scored when this is called. Each copy has tensors of its own for the adapter alone, and
    shares all others with `model`.

    Args:
        model: as in `prune`.
        budgets: as in `prune`, each of them.
        dataloader: as in `prune`.
        by: as in `prune`.
        intervals: as in `prune`.
        loss: as in `prune`.
        **limits: `max_rank`, `min_rank`, `multiple_of` and `rank_by`, as in `prune`.

    Returns:
        A copy for each budget, a plain PEFT LoRA, and what pruning left of it, in the order of the budgets.

    Raises:
        LorankError: as `prune`.

    """
    work = _Work.begin(model, budgets, dataloader, by, loss, {"rank_by": "score", **limits})
    whole = _copy_of_adapter(model)
    scored = work.score(whole, to_triplets(whole, work.name), intervals)

    def each() -> Iterator[tuple[PeftModel, Pruned]]:
        for budget in work.budgets:
            small = _copy_of_adapter(whole)
            adapter = TripletAdapter.of(small, work.name)
            by_svd = work.loss_by_svd(small, adapter, budget)
            plan, energy = work.cut(adapter, scored, budget)
            fold_to_lora(small, adapter, work.scale)
            after = mean_loss(small, work.batches, loss)
            yield small, Pruned(plan, scored, energy, work.loss_before, after, by_svd)

    return each()


def held_parameters(model: PeftModel) -> int:
    """Adapter parameters of a model, heads left out."""
    return sum(parameter.numel() for name, parameter in model.named_parameters() if is_adapter_tensor(name))


@dataclass(frozen=True)
class _Work:
    """What is known before the triplets are scored; everything that can be refused has been."""

    name: str
    by: str
    budgets: tuple[Budget, ...]
    batches: Sequence[Batch]
    loss: SummedLoss
    loss_before: float | None
    scale: float
    provenance: Mapping[str, Any]
    limits: Mapping[str, Any]

    @classmethod
    def begin(
        cls,
        model: PeftModel,
        budgets: Sequence[str | int | Budget],
        dataloader: Iterable[Batch] | None,
        by: str | None,
        loss: SummedLoss,
        limits: Mapping[str, Any],
    ) -> "_Work":
        by = choose_score(by, data=dataloader is not None)
        if not isinstance(model, PeftModel) or len(model.active_adapters) != 1:
            raise AdapterError(
                "there is no single active adapter to prune; give a PeftModel with one LoRA adapter active"
            )
        name = model.active_adapters[0]
        layers = adapted_layers(model, name)
        _check_trained(layers, name)
        size = base_parameters(model)
        costs = {module: int(layer.in_features + layer.out_features) for module, layer in layers.items()}
        held = sum(int(layer.r[name]) * costs[module] for module, layer in layers.items())
        read = tuple(pruning_budget(budget, held) for budget in budgets)
        for budget in read:
            _check_budget(
                {m: starting_rank(layer, name) for m, layer in layers.items()}, costs, held, budget, size, limits
            )
        batches: Sequence[Batch] = [on_device_of(model, batch) for batch in dataloader or ()]
        if by == "path" and not batches:
            raise DataError("pruning by 'path' looks at the loss, and the loader gave no batch; give at least one")
        before = mean_loss(model, batches, loss)
        if batches and before is None:
            raise DataError("not one label of the batches counts (all are -100); give labelled examples")
        scale = max(float(layer.scaling[name]) for layer in layers.values())
        made = {"model": getattr(getattr(model, "config", None), "_name_or_path", ""), "method": f"prune by {by}"}
        made |= {"model_type": model_type_of(model.get_base_model()), "base_parameters": size, "versions": versions()}
        return cls(name, by, read, batches, loss, before, scale, made, limits)

    def score(self, model: PeftModel, adapter: TripletAdapter, intervals: int) -> ImportanceScores:
        """Scores of the triplets of a model that carries them."""
        if self.by == "svd":
            return energy_scores(adapter, dict(self.provenance))
        return path_scores(model, adapter, self.batches, intervals, self.loss, dict(self.provenance))

    @torch.no_grad()
    def loss_by_svd(self, model: PeftModel, adapter: TripletAdapter, budget: Budget) -> float | None:
        """Mean loss of a cut by energy, without making it; None where that is the cut."""
        if self.by == "svd":
            return None
        scores, whole = energy_scores(adapter, {}), [lambdas.clone() for lambdas in adapter.lambdas]
        ranks = allocate(scores, budget, scale=self.scale, **self.limits).ranks
        try:
            for name, lambdas in zip(adapter.names, adapter.lambdas, strict=True):
                kept = torch.from_numpy(best_units(scores.scores[name], ranks[name])).to(lambdas.device)
                lambdas.copy_(torch.zeros_like(lambdas).index_copy(0, kept, lambdas[kept]))
            return mean_loss(model, self.batches, self.loss)
        finally:
            for lambdas, values in zip(adapter.lambdas, whole, strict=True):
                lambdas.copy_(values)

    def cut(self, adapter: TripletAdapter, scores: ImportanceScores, budget: Budget) -> tuple[RankPlan, KeptEnergy]:
        """Cut triplets to a budget, in place."""
        energies = triplet_energies(adapter)
        plan = allocate(scores, budget, scale=self.scale, **self.limits)
        kept = {module: best_units(scores.scores[module], rank) for module, rank in plan.ranks.items()}
        shrink(adapter, {module: torch.from_numpy(units) for module, units in kept.items()})
        return plan, KeptEnergy.of(energies, {module: np.asarray(units) for module, units in kept.items()})


def _copy_of_adapter(model: PeftModel) -> PeftModel:
    """A copy with tensors of its own for the adapter; all others are those of `model`."""
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return deepcopy(model, {id(tensor): tensor for name, tensor in tensors if not is_adapter_tensor(name)})


def _check_trained(layers: Mapping[str, LoraLayer], name: str) -> None:
    """Refuse an adapter that does nothing yet, and warn of one that hardly does anything."""
    if not any(bool(layer.lora_B[name].weight.any()) for layer in layers.values()):
        raise AdapterError(
            f"adapter {name!r} is not trained yet (every B is 0); lorank.score plans ranks before training"
        )
    if all(float(layer.lora_B[name].weight.detach().abs().max()) < 1e-30 for layer in layers.values()):
        warnings.warn(
            f"no entry of any B of adapter {name!r} is above 1e-30, so it hardly does anything; was it trained?",
            LorankWarning,
            stacklevel=4,
        )


def _check_budget(
    units: Mapping[str, int],
    costs: Mapping[str, int],
    held: int,
    budget: Budget,
    base_parameters: int,
    limits: Mapping[str, Any],
) -> None:
    """Refuse a budget that prunes nothing, and try the limits on equal scores, before the adapter is touched."""
    asked: Budget | int = budget
    if budget.counts_units:
        total = sum(units.values())
        if budget.units(total) >= total:
            raise BudgetError(f"budget {budget} keeps all {total:,} units of rank: nothing is to prune; ask for less")
    else:
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
