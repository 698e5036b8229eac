"""The regulariser that keeps the columns of P and the rows of Q orthonormal (AdaLoRA, eq. 4)."""

from collections import defaultdict
from collections.abc import Sequence

import torch

from lorank.adapter.triplet import TripletAdapter


def orthogonality_plain(adapter: TripletAdapter) -> torch.Tensor:
    """Mean over all P and Q of `‖PᵀP - I‖_F` and `‖QQᵀ - I‖_F`: the specification, one matrix at a time.

    The unsquared norm and the mean are those of AdaLoRA's code; its paper prints a sum of squares.
    """
    wide = [*(p.T for p in adapter.p), *adapter.q]
    norms = [torch.linalg.matrix_norm(w @ w.T - torch.eye(len(w), dtype=w.dtype, device=w.device)) for w in wide]
    return torch.stack(norms).mean()


@torch.no_grad()
def add_orthogonality_gradient(
    adapter: TripletAdapter,
    weight: float | torch.Tensor,
    *,
    off_diagonal: bool = False,
    kept: Sequence[torch.Tensor] | None = None,
) -> None:
    """Add the gradient of `weight · orthogonality_plain(adapter)` to `.grad`: no loss is touched, so none is inflated.

    For a wide factor W (P transposed, or Q), n factors and `E = WWᵀ - I`: `weight · 2/n · E W / ‖E‖_F`. Factors without
    a gradient (they took no part in this step) are left out; where `E` is zero the gradient is zero.

    Args:
        adapter: whose P and Q have gradients that are not scaled.
        weight: γ.
        off_diagonal: `E` is the off-diagonal part of `WWᵀ` alone (IGU-LoRA's code).
        kept: of each module, the positions of the units that there are, if others are only masked; None is all.

    """
    by_shape: dict[torch.Size, list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]] = defaultdict(list)
    count, modules = 0, len(adapter.names)
    for number, factor in enumerate((*adapter.p, *adapter.q)):
        units = None if kept is None else kept[number % modules]
        if factor.numel() and (units is None or len(units)):
            count += 1
            if factor.grad is not None:
                wide, gradient = (factor.T, factor.grad.T) if number < modules else (factor, factor.grad)
                wide = wide if units is None else wide[units]
                by_shape[wide.shape].append((wide, gradient, units))
    for (rank, _), pairs in by_shape.items():
        wide = torch.stack([matrix.to(torch.promote_types(matrix.dtype, torch.float32)) for matrix, _, _ in pairs])
        gram = wide @ wide.mT
        eye = torch.eye(rank, dtype=gram.dtype, device=gram.device)
        excess = gram * (1 - eye) if off_diagonal else gram - eye
        norm = torch.linalg.matrix_norm(excess, keepdim=True)
        pull = torch.where(norm > 0, excess / norm, 0.0) @ wide * (2 * weight / count)
        if kept is None:
            torch._foreach_add_(
                [gradient for _, gradient, _ in pairs],
                [p.to(g.dtype) for p, (_, g, _) in zip(pull, pairs, strict=True)],
            )
        else:
            for own, (_, gradient, units) in zip(pull, pairs, strict=True):
                assert units is not None, "there is an entry of `kept` for every module"
                gradient.index_add_(0, units, own.to(gradient.dtype))
