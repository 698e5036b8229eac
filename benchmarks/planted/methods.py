"""Every way to find ranks in a world: scores of the frozen model, searches, allocation in training, and controls.

Plans are trained as plain LoRA, all of a world and seed side by side. What trains its own adapter is measured against triplets.
"""

import copy
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from bases import linear
from students import (
    CAP,
    INITIAL,
    SCALE,
    STEPS,
    Ranks,
    lora_model,
    plan_of,
    searched_plan,
    test_losses,
    train_allocation,
    train_plans,
    train_triplets,
    uniform_ranks,
)
from worlds import World

import lorank
from lorank import ImportanceScores
from lorank.compare.controls import shuffled
from lorank.headroom.plans import plans_by_kind
from lorank.targets import find_targets

# Scores of the frozen model as lorank has them: name -> method and options.
FROZEN: Mapping[str, tuple[str, dict[str, Any]]] = {
    "magnitude": ("magnitude", {}),
    "gradient": ("gradient", {}),
    "eva": ("eva", {}),
    "gram": ("sensitivity-lora", {"preset": "recommended", "estimator": "gram"}),
    "fisher": ("sensitivity-lora", {"preset": "recommended", "estimator": "fisher"}),
    "kfac": ("sensitivity-lora", {"preset": "recommended", "estimator": "kfac"}),
    "hutchinson": ("sensitivity-lora", {"preset": "recommended", "estimator": "hutchinson"}),
}
# I-LoRA: preset and steps of the search. `probe` is the length that costs 0.3 of a training, scoring included.
SEARCHES: Mapping[str, tuple[str, int]] = {
    "i-lora paper": ("paper", STEPS),
    "i-lora paper, short": ("paper", STEPS // 5),
    "i-lora loss-per-parameter": ("loss-per-parameter", STEPS),
    "probe": ("loss-per-parameter", STEPS // 5),
    "probe, half as long": ("loss-per-parameter", STEPS // 10),
}
COMMON: dict[str, Any] = {"budget_in": "parameters", "fill": True}
IN_TRAINING: Mapping[str, tuple[str, dict[str, Any]]] = {
    "adalora paper": ("adalora", {"preset": "paper", **COMMON}),
    "adalora recommended": ("adalora", {"preset": "recommended"}),
    "igu recommended": ("igu-lora", {"preset": "recommended"}),
    "igu paper": ("igu-lora", {"preset": "paper", **COMMON, "window": 10}),  # an epoch is 128 steps of these 200
    "igu official": ("igu-lora", {"preset": "official", **COMMON, "cost_weights": {}}),
}
# Measured against triplets of uniform and of planted ranks; all others against plain LoRA of these.
TRIPLETS = (
    "adalora paper",
    "adalora recommended",
    "igu recommended",
    "igu paper",
    "uniform-triplets",
    "oracle-triplets",
)


def frozen_plans(world: World, seed: int, names: Collection[str]) -> Iterator[tuple[str, dict[str, int], float]]:
    """Plans of scores of the frozen model, in lorank's own ranks and in those that are candidates for better defaults."""
    loader, budget = world.train.part(0, 256).batches(32), world.budget
    for name, (method, options) in FROZEN.items():
        if name not in names:
            continue
        began = time.process_time()
        try:
            scores = lorank.score(copy.deepcopy(world.base), loader, method=method, seed=seed, **options)
        except lorank.LorankError as error:  # estimators whose scores are all 0 here
            print(f"{name} leaves no row: {error}", flush=True)
            continue
        took = time.process_time() - began
        yield name, dict(lorank.allocate(scores, budget, max_rank=CAP).ranks), took
        if name in ("gram", "fisher"):
            variants: Mapping[str, dict[str, Any]] = {
                "bounded": {"within": 2.0},
                "per parameter": {"max_rank": CAP, "rank_by": "score-per-parameter"},
                "per parameter, bounded": {"within": 2.0, "rank_by": "score-per-parameter"},
            }
            for label, limits in variants.items():
                yield f"{name}, {label}", dict(lorank.allocate(scores, budget, **limits).ranks), took
            scores = lorank.score(
                copy.deepcopy(world.base), loader, method=method, seed=seed, per_output=True, **options
            )
            yield f"{name}, per output", dict(lorank.allocate(scores, budget, max_rank=CAP).ranks), took
            yield f"{name}, per output, bounded", dict(lorank.allocate(scores, budget, within=2.0).ranks), took


def attempts(world: World, kind: str, seed: int) -> Iterator[tuple[str, dict[str, int], float]]:
    """Three of our own: scores after a short rank-1 training, signal above noise by module, agreement of two seeds."""
    began = time.process_time()
    stacked = train_plans(world, {"one": dict.fromkeys(world.costs, 1)}, kind, seed, steps=STEPS // 10)
    model = lora_model(world, 1, seed)
    stacked.into_peft(0, model)
    merged = model.merge_and_unload()
    loader = world.train.part(0, 256).batches(32)
    for name, preset in (("gradient", None), ("sensitivity-lora", "recommended")):
        scores = lorank.score(copy.deepcopy(merged), loader, method=name, seed=seed, preset=preset)
        ranks = dict(lorank.allocate(scores, world.budget, max_rank=CAP).ranks)
        yield f"{'gram' if name == 'sensitivity-lora' else name} after rank 1", ranks, time.process_time() - began
    moved = {name: (a.norm() * b.norm()).square().item() for name, (a, b) in stacked.factors(0).items()}
    yield "energy of rank 1", proportional(world, moved), time.process_time() - began
    began = time.process_time()
    yield "signal above noise", proportional(world, signal(world)), time.process_time() - began
    began = time.process_time()
    two = [searched_plan(world, kind, seed + 100 * k, "loss-per-parameter", STEPS // 10) for k in range(2)]
    agreed = {name: float((two[0][name] * two[1][name]) ** 0.5) for name in world.costs}
    yield "agreement of two probes", proportional(world, agreed, floor=0.1), time.process_time() - began


def proportional(world: World, values: Mapping[str, float], floor: float = 0.0) -> dict[str, int]:
    """Ranks in proportion to one value a module."""
    scores = ImportanceScores(
        {name: torch.tensor([max(values.get(name, 0.0), 0.0) + floor]).double().numpy() for name in world.costs},
        dict(world.costs), max_ranks=dict.fromkeys(world.costs, CAP),
    )  # fmt: skip
    return dict(lorank.allocate(scores, world.budget).ranks)


def signal(world: World, count: int = 1024) -> dict[str, float]:
    """`<G1, G2>` of each weight, gradients of two halves of the examples: the energy of the signal; noise alone gives 0."""
    model = copy.deepcopy(world.base)
    weights = {name: linear(model, name).weight for name in world.costs}
    for weight in weights.values():
        weight.requires_grad_(True)
    halves = list[list[torch.Tensor]]()
    for part in (world.train.part(0, count // 2), world.train.part(count // 2, count)):
        loss = sum(model(**batch).loss for batch in part.batches(128))
        halves.append(list(torch.autograd.grad(torch.as_tensor(loss), list(weights.values()))))
    return {name: float((one * two).sum()) for name, one, two in zip(weights, *halves, strict=True)}


def trained(
    world: World, kind: str, seed: int, names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor, dict[str, int], float]]:
    """Methods that train what they allocate: test losses and the plan that they end with."""
    for name, (method, options) in IN_TRAINING.items():
        if name in names:
            began = time.process_time()
            losses, plan = train_allocation(world, kind, seed, method, **options)
            yield name, losses, dict(plan.ranks), time.process_time() - began
    uniform = uniform_ranks(world)
    ends: Mapping[str, Callable[[], torch.Tensor]] = {
        # It is cut to the uniform rank on AdaLoRA's schedule: what differs from AdaLoRA is the ranks alone.
        "uniform-triplets": lambda: train_allocation(
            world,
            kind,
            seed,
            "adalora",
            **COMMON,
            preset="paper",
            min_rank=min(uniform.values()),
            max_rank=max(uniform.values()),
        )[0],
        "oracle-triplets": lambda: train_triplets(world, kind, seed, world.planted),
    }
    for name, train in ends.items():
        if name in names:
            began = time.process_time()
            losses = train()
            yield (
                name,
                losses,
                uniform if name == "uniform-triplets" else dict(world.planted),
                time.process_time() - began,
            )


def searched(world: World, kind: str, seed: int, names: Collection[str]) -> Iterator[tuple[str, dict[str, int], float]]:
    """I-LoRA's plans."""
    for name, (preset, steps) in SEARCHES.items():
        if name in names:
            began = time.process_time()
            yield name, searched_plan(world, kind, seed, preset, steps), time.process_time() - began


def controls(world: World) -> dict[str, Ranks]:
    """Plans that no score made."""
    by_kind, _ = plans_by_kind(find_targets(world.base), world.budget, SCALE)
    planted = plan_of(world, world.planted)
    return {
        "uniform": uniform_ranks(world),
        "oracle": dict(world.planted),
        "shuffled oracle 1": dict(shuffled(planted, 1).ranks),
        "shuffled oracle 2": dict(shuffled(planted, 2).ranks),
        **{f"{kind} only": dict(plan.ranks) for kind, plan in by_kind.items() if kind in ("feed-forward", "attention")},
    }


def pruned(world: World, kind: str, seed: int, rank: int = 8) -> Iterator[tuple[str, torch.Tensor, dict[str, int]]]:
    """A trained adapter of rank 8 everywhere, whole and cut to the budget."""
    stacked = train_plans(world, {"wide": dict.fromkeys(world.costs, rank)}, kind, seed)
    model = lora_model(world, rank, seed)
    stacked.into_peft(0, model)
    yield f"rank {rank}, uncut", test_losses(model, world), dict.fromkeys(world.costs, rank)
    for by in ("svd", "path"):
        model = lora_model(world, rank, seed)
        stacked.into_peft(0, model)
        loader = world.train.part(0, 256).batches(32)
        if rank * sum(world.costs.values()) <= world.budget:
            continue
        cut = lorank.prune(model, world.budget, loader, by=by, rank_by="score-per-parameter")
        yield f"rank {rank}, cut by {by}", test_losses(model, world), dict(cut.plan.ranks)


__all__ = ["INITIAL", "TRIPLETS", "attempts", "controls", "frozen_plans", "pruned", "searched", "trained"]
