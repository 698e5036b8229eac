"""Estimators of the parameter-space integrated gradient `w · ∫_0^1 ∂L(αθ)/∂w dα` on one mini-batch (IGU-LoRA, eq. 4 to 6)."""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.options import Estimator
from lorank.engine.path import LossFunction, model_loss, path_integral
from lorank.engine.quadrature import trapezoid_bound
from lorank.engine.unit_scores import over_processes
from lorank.errors import LorankError
from lorank.scoring.batches import Batch
from lorank.scoring.precision import at_least_fp32


def estimator_points(estimator: Estimator, intervals: int, draw: random.Random) -> list[tuple[float, float]]:
    """Path coefficients α_k and weights w_k with which `∫ g(α) dα ≈ Σ_k w_k g(α_k)`, N = `intervals`.

    | estimator         | points                                                        | passes | expectation          |
    |-------------------|---------------------------------------------------------------|--------|----------------------|
    | `"training-pass"` | none: the gradient that training has anyway stands for it     | 0      | g(1)                 |
    | `"single-pass"`   | one α ~ U(0, 1), weight 1                                     | 1      | ∫ g                  |
    | `"one-sample"`    | eq. 6 as printed: 0, one α of {1/N..(N-1)/N}, 1; (1, 2, 1)/2N | 3      | about 2/N of it      |
    | `"unbiased"`      | the same nodes, weights (1, 2(N-1), 1)/2N                     | 3      | the trapezoid's sum  |
    | `"trapezoid"`     | eq. 5: 0, 1/N, ..., 1, the ends half                          | N + 1  | the trapezoid's sum  |

    Passes are forward and backward passes beside training's own, for one scored mini-batch and a global path.

    Raises:
        LorankError: an unknown estimator, or fewer intervals than it needs (2 for the one-sample forms).

    """
    n = intervals
    if estimator == "training-pass":
        return []
    if estimator == "single-pass":
        return [(draw.random(), 1.0)]
    if estimator == "trapezoid" and n >= 1:
        return [(k / n, (0.5 if k in (0, n) else 1.0) / n) for k in range(n + 1)]
    if estimator in ("one-sample", "unbiased") and n >= 2:
        inner = 2 * (n - 1) if estimator == "unbiased" else 2
        return [(0.0, 0.5 / n), (draw.randint(1, n - 1) / n, 0.5 * inner / n), (1.0, 0.5 / n)]
    raise LorankError(
        f"estimator {estimator!r} with {n} intervals; allowed: training-pass, single-pass, trapezoid (from 1), one-sample "
        "and unbiased (from 2)"
    )


def layer_groups(layers: Sequence[object]) -> list[list[int]]:
    """Numbers of the modules that share an entry of `layers` (one entry a module): paths that move one layer at a time."""
    groups: dict[object, list[int]] = {}
    for index, layer in enumerate(layers):
        groups.setdefault(layer, []).append(index)
    return list(groups.values())


def integrated_gradients(
    model: nn.Module,
    adapter: TripletAdapter,
    batch: Batch,
    points: Sequence[tuple[float, float]],
    *,
    groups: Sequence[Sequence[int]] | None = None,
    moved: str = "lambda",
    wrt: str = "all",
    loss: LossFunction = model_loss,
    loss_scale: float = 1.0,
) -> list[torch.Tensor]:
    """`w · Σ_k w_k g(α_k)`, signed, for every λ, or with `wrt="all"` for every λ, then every P, then every Q.

    None for `groups` is the global path: all modules move together. Groups of module numbers are moved one group at a
    time, the others stay at α = 1, which costs as many times the passes.
    """
    factors = adapter.factors(wrt)
    modules = len(adapter.names)
    found: list[torch.Tensor] = [torch.empty(0)] * len(factors)
    for group in groups or [range(modules)]:
        part = adapter.only(*group)
        own = part.factors(wrt)
        integral, _ = path_integral(model, part, batch, points, own, moved=moved, loss=loss, loss_scale=loss_scale)
        products = torch._foreach_mul(integral, [at_least_fp32(factor.detach()) for factor in own])
        for position, product in enumerate(products):
            found[position // len(group) * modules + group[position % len(group)]] = product
    return found


@dataclass(frozen=True)
class QuadratureCheck:
    """How far the composite trapezoid rule can be trusted on one batch, for the path of all modules together.

    With `f_i(α) = λ_i ∂L/∂λ_i` at path point α, for every unit i. The last three are estimates from N + 1 path points, no
    bounds: between these points the gradient may do anything.

    Attributes:
        intervals: N, even.
        loss_change: `L(θ) - L(0)`.
        completeness_gap: `|Σ IG - (L(θ) - L(0))|`, absolute; over the moved factors, so it falls as N^-2.
        richardson_estimate: of the error of the units' integrals relative to their size:
            `Σ_i |T_N - T_(N/2)|_i / 3 / Σ_i |T_N|_i`, the N^-2 term of the error.
        lipschitz_estimate: of the constants in `trapezoid_bound`, summed over units, in units of the loss: from second
            differences, `N² Σ_i max_k |f_i((k-1)/N) - 2 f_i(k/N) + f_i((k+1)/N)|`. Never above the true sum of constants.
            None in what earlier versions have written.
        bound_estimate: `trapezoid_bound(lipschitz_estimate, N) / Σ_i |T_N|_i`, relative as the Richardson estimate is, and
            never below that: it takes the largest second difference of each unit for all.

    """

    intervals: int
    loss_change: float
    completeness_gap: float
    richardson_estimate: float
    lipschitz_estimate: float | None = None
    bound_estimate: float | None = None

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "QuadratureCheck":
        """From a checkpoint; earlier versions wrote `richardson_error`."""
        return cls(**{"richardson_estimate" if key == "richardson_error" else key: v for key, v in record.items()})


def check_quadrature(
    model: nn.Module,
    adapter: TripletAdapter,
    batch: Batch,
    intervals: int,
    *,
    moved: str = "lambda",
    loss: LossFunction = model_loss,
    loss_scale: float = 1.0,
) -> QuadratureCheck:
    """Integrate one batch with N and with N/2 intervals (the latter's nodes are among the former's: N + 1 passes).

    With several processes the batch is all of theirs together: gradients and losses are averaged.

    Raises:
        LorankError: N is not even.

    """
    n = intervals
    if n < 2 or n % 2:
        raise LorankError(f"the quadrature check halves its intervals, {n} is not even; give 2, 4, 6, ...")
    factors = adapter.factors(moved)
    sizes = [at_least_fp32(factor.detach()) for factor in factors]
    path: list[torch.Tensor] = []  # of the last three points
    fine = coarse = whole = largest = torch.zeros(())
    ends: dict[int, torch.Tensor] = {}
    for k in range(n + 1):
        gradients, losses = path_integral(
            model, adapter, batch, [(k / n, 1.0)], factors, moved=moved, loss=loss, loss_scale=loss_scale
        )
        *gradients, value = over_processes([*gradients, *losses])
        products = torch._foreach_mul(gradients, sizes)
        units = torch.cat(products[: len(adapter.names)])
        weight = 0.5 if k in (0, n) else 1.0
        if k == 0:
            fine, coarse, whole = torch.zeros_like(units), torch.zeros_like(units), torch.zeros_like(units[:1].sum())
            largest = torch.zeros_like(units)
        path = [*path[-2:], units]
        if len(path) == 3:
            largest = torch.maximum(largest, (path[0] - 2 * path[1] + path[2]).abs())
        fine = fine + units * (weight / n)
        coarse = coarse + units * (weight / (n // 2)) if k % 2 == 0 else coarse
        whole = whole + torch.stack([product.sum() for product in products]).sum() * (weight / n)
        ends[k] = value
    change = float(ends[n]) - float(ends[0])
    size = float(fine.abs().sum())
    error, lipschitz = float((fine - coarse).abs().sum()) / 3, n**2 * float(largest.sum())
    relative = [found / size if size else math.inf for found in (error, trapezoid_bound(lipschitz, n))]
    return QuadratureCheck(n, change, abs(float(whole) - change), relative[0], lipschitz, relative[1])


def intervals_for(tolerance: float, check: QuadratureCheck, *, most: int = 128) -> int:
    """Intervals with which the trapezoid's relative error is estimated to be `tolerance`, by its N^-2 law (IGU-LoRA, theorem 1).

    `N = N_0 √(richardson_0 / tolerance)`, rounded up to an even number within 2..`most`.
    """
    if not math.isfinite(check.richardson_estimate):
        return check.intervals
    wanted = check.intervals * math.sqrt(check.richardson_estimate / tolerance)
    return int(min(most, max(2, 2 * math.ceil(wanted / 2))))
