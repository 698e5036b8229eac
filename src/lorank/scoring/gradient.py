"""`|w · g|` of the frozen weights: what removing a weight would change, to first order (the score of GoRA and AdaLoRA)."""

import torch

from lorank.scoring.curvature.fisher import gradient_columns
from lorank.scoring.precision import at_least_fp32


def weighted_gradient_columns(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`Σ_i |W_ij g_ij|` with `g = Σ_t δ_t x_tᵀ`, the gradient of one example's loss.

    Args:
        x: inputs, `(examples, tokens, d_in)`.
        delta: gradient of the summed loss by the outputs, `(examples, tokens, d_out)`.
        weight: `W`, `(d_out, d_in)`.

    Returns:
        `(examples, d_in)`, at least fp32.

    """
    wide = at_least_fp32(weight)
    return gradient_columns(
        at_least_fp32(x), at_least_fp32(delta), lambda gradient, rows: gradient.mul_(wide[rows]).abs_()
    )
