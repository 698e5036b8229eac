"""The path from a baseline to the adapters as they stand, `θ(α) = θ0 + α (θ - θ0)` (I-LoRA, eq. 4)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from lorank.adapter.triplet import TripletAdapter


@contextmanager
def path_point(
    adapter: TripletAdapter,
    alpha: float,
    *,
    moved: str = "lambda",
    baseline: Sequence[torch.Tensor] | None = None,
) -> Iterator[None]:
    """While open, the adapters stand at `θ(α) = θ0 + α (θ - θ0)`; on leaving, also by an exception, exactly at θ again.

    Args:
        adapter: whose factors move; give `adapter.only(i)` to move one module and leave the others at α = 1.
        alpha: path coefficient; 0 is the baseline, 1 the adapters as they are.
        moved: `"lambda"` moves λ alone, so that `dW(α) = α dW` from a zero baseline is a straight line in dW;
            `"all"` moves P, λ and Q, so that `dW(α) = α³ dW` (I-LoRA, readings A2 and A1 of docs/i-lora.md).
        baseline: θ0, one tensor for each of `adapter.factors(moved)` as `capture` returns them; None is zero.

    """
    factors = adapter.factors(moved)
    before = capture(adapter, moved)
    try:
        with torch.no_grad():
            if baseline is None:
                torch._foreach_mul_(factors, alpha)
            else:
                torch._foreach_copy_(factors, torch._foreach_lerp(list(baseline), before, alpha))
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(factors, before)


def capture(adapter: TripletAdapter, moved: str = "lambda") -> list[torch.Tensor]:
    """Copies of the factors that a path moves: a baseline for later, for example the initial values."""
    return [factor.detach().clone() for factor in adapter.factors(moved)]


def displacement(
    adapter: TripletAdapter, *, moved: str = "lambda", baseline: Sequence[torch.Tensor] | None = None
) -> list[torch.Tensor]:
    """`θ - θ0` for each of `adapter.factors(moved)`: the length of the path along each parameter."""
    factors = [factor.detach() for factor in adapter.factors(moved)]
    return factors if baseline is None else list(torch._foreach_sub(factors, list(baseline)))
