"""Worlds with a known answer: a frozen base, and a teacher that differs from it by planted low-rank changes in a few modules.

The teacher is the base plus `s_m U_m V_m` of rank r_m in module m. Rows of V are drawn in the module's whitened input space (its
largest principal components), so each planted unit moves variance that there is; s_m is such that module m alone changes the
outputs by `strength * r_m` of their variance: each planted unit matters equally. Students see the teacher's outputs as vectors
(`problem_type="regression"`: the stock loss is the mean of squared errors); the head is the same for both and frozen. Outputs
are whitened, so that each direction counts, and scaled so that the loss of the base is 1. The budget is what was planted.
"""

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from bases import Bases, Examples, head_of, linear
from torch import nn

from lorank.targets import find_targets

DESIGNS = ("random", "one-type", "mlp", "attention", "raw", "homogeneous")
# The last parts of names, by projection.
PROJECTIONS = {
    "query": "q", "key": "k", "value": "v", "attention.output.dense": "o", "intermediate.dense": "up", "output.dense": "down",
    "q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o", "gate_proj": "gate", "up_proj": "up", "down_proj": "down",
}  # fmt: skip
FEED_FORWARD = ("up", "down", "gate")


@dataclass(frozen=True)
class World:
    """A base, a teacher's answers, and the ranks that made the difference.

    Attributes:
        base: a classifier whose outputs are numbers; frozen but for what students add.
        head: name of its head.
        train: of the teacher.
        test: of the teacher.
        planted: module -> rank.
        costs: module -> parameters of one unit of rank.
        alone: module -> share of the variance of the outputs that its change makes alone.

    """

    base: nn.Module
    head: str
    train: Examples
    test: Examples
    planted: Mapping[str, int]
    costs: Mapping[str, int]
    alone: Mapping[str, float] = field(default_factory=dict)

    @property
    def budget(self) -> int:
        """Parameters that were planted."""
        return sum(rank * self.costs[name] for name, rank in self.planted.items())

    def on(self, device: str) -> "World":
        """A copy on a device."""
        base = copy.deepcopy(self.base).to(device)
        return replace(self, base=base, train=self.train.on(device), test=self.test.on(device))


def projection(name: str) -> str:
    """`bert.encoder.layer.2.output.dense` -> `down`."""
    return next(short for last, short in PROJECTIONS.items() if name.endswith(last))


def layer(name: str) -> int:
    """The number in a module's name."""
    return next(int(part) for part in name.split(".") if part.isdigit())


def short(name: str) -> str:
    """`bert.encoder.layer.2.output.dense` -> `2.down`."""
    return f"{layer(name)}.{projection(name)}"


def planted_ranks(design: str, names: Sequence[str], seed: int) -> dict[str, int]:
    """Ranks of a design, a function of its seed.

    random, raw: 16, 12, 8, 4 in four modules; one-type: 10 in one projection of half of the layers; mlp, attention: 4 in every
    module of that kind; homogeneous: 2 in every module, the negative control. In `raw` planted rows are not whitened.
    """
    source = random.Random(f"{design}/{seed}")
    layers = sorted({layer(name) for name in names})
    if design == "one-type":
        kind = ("v", "down", "q", "o", "up", "k")[seed % 6]
        chosen = source.sample(layers, max(2, len(layers) // 2))
        return {name: 10 if projection(name) == kind and layer(name) in chosen else 0 for name in names}
    if design in ("random", "raw"):
        drawn = dict(zip(source.sample(sorted(names), 4), (16, 12, 8, 4), strict=True))
        return {name: drawn.get(name, 0) for name in names}
    if design == "homogeneous":
        return dict.fromkeys(names, 2)
    wanted = {"mlp": True, "attention": False}[design]
    return {name: 4 if (projection(name) in FEED_FORWARD) is wanted else 0 for name in names}


def make_world(bases: Bases, kind: str, design: str, seed: int, strength: float = 0.03) -> World:
    """A world; the same for the same kind, design and seed."""
    base, ids = bases.of(kind)
    targets = find_targets(base)
    ranks = planted_ranks(design, [target.name for target in targets], seed)
    teacher, alone = plant(base, ids["train"], ranks, seed, strength, whitened=design != "raw")
    labels = {part: outputs(teacher, one) for part, one in ids.items()}
    scale = float((labels["test"] - outputs(base, ids["test"])).square().mean().sqrt())
    head = base.get_submodule(head_of(base))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.div_(scale)
    data = {part: Examples(ids[part], labels[part] / scale) for part in ids}
    costs = {target.name: target.unit_cost for target in targets}
    return World(base, head_of(base), data["train"], data["test"], ranks, costs, alone)


@torch.no_grad()
def outputs(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """`(n, outputs)`."""
    return torch.cat([model(input_ids=part).logits for part in ids.split(256)])


@torch.no_grad()
def plant(
    base: nn.Module, ids: torch.Tensor, ranks: Mapping[str, int], seed: int, strength: float, *, whitened: bool = True
) -> tuple[nn.Module, dict[str, float]]:
    """The teacher, and the share of the variance of the outputs that each planted module changes alone."""
    teacher, looked_at, components = copy.deepcopy(base), ids[:256], 32
    draw = torch.Generator().manual_seed(1000 + seed)
    names = [name for name, rank in ranks.items() if rank]
    moments = input_covariances(base, names, ids[:512])
    start = outputs(base, looked_at)
    variance, changes, alone = start.var(0).sum(), dict[str, torch.Tensor](), dict[str, float]()
    for name in names:
        module, rank = linear(teacher, name), ranks[name]
        d_out, d_in = module.weight.shape
        u = torch.linalg.qr(torch.randn(d_out, rank, generator=draw))[0]
        if whitened:
            values, vectors = torch.linalg.eigh(moments[name])
            top = min(components, d_in)
            mixed = torch.linalg.qr(torch.randn(top, rank, generator=draw))[0].T
            v = (mixed / values[-top:].clamp_min(1e-6).sqrt()) @ vectors[:, -top:].T
        else:
            v = torch.randn(rank, d_in, generator=draw)
        change, weight = (u @ v).to(module.weight), module.weight.clone()

        def effect(
            size: float, module: Any = module, change: torch.Tensor = change, weight: torch.Tensor = weight
        ) -> float:
            module.weight.copy_(weight + size * change)
            moved = (outputs(teacher, looked_at) - start).square().sum(1).mean() / variance
            module.weight.copy_(weight)
            return float(moved)

        low, high = 0.0, 1.0
        while effect(high) < strength * rank and high < 64:
            high *= 2
        for _ in range(16):
            middle = (low + high) / 2
            low, high = (middle, high) if effect(middle) < strength * rank else (low, middle)
        changes[name], alone[name] = high * change, effect(high)
    for name, change in changes.items():
        linear(teacher, name).weight.add_(change)
    return teacher, alone


def input_covariances(model: nn.Module, names: Sequence[str], ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Covariance of each module's inputs over tokens, `(d_in, d_in)` on the CPU."""
    held: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, out, name=name: held.__setitem__(name, args[0].flatten(0, 1))
        )
        for name in names
    ]
    model(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cov(seen.T).cpu() for name, seen in held.items()}
