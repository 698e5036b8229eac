"""The layer-wise Hessian of OBQ and GPTQ, `H = 2 E[x xᵀ] ⊗ I`: what a layer's inputs alone say."""

import torch

from lorank.scoring.precision import at_least_fp32


def input_energy(x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`Σ_t m_t x_tj²` for every example and input column.

    With `y = W x` and the error `‖δW x‖²` of changed weights, the Hessian is `2 x xᵀ` for every row of `W`. Its diagonal is
    `h_ij = 2 E[x_j²]` for all i, so the column sums are `2 d_out E[x_j²]`, the expectation over all real tokens. Layers with
    the same input and the same number of outputs (q, k and v) cannot be told apart by it.

    Args:
        x: inputs, `(examples, tokens, d_in)`.
        mask: True at real tokens, `(examples, tokens)`; None where all are.

    Returns:
        `(examples, d_in)`, at least fp32.

    """
    squared = at_least_fp32(x).square()
    if mask is None:
        return squared.sum(1)
    # As a product of matrices: one pass over the squares, padding weighs nothing even where it is not zero.
    return torch.bmm(mask.to(squared.dtype)[:, None, :], squared)[:, 0]
