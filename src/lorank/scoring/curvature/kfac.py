"""The K-FAC diagonal `h_ij = E[x_j²] · Σ_t δ_ti²`: input energy times the energy of the output gradients."""

import torch

from lorank.scoring.precision import at_least_fp32


def output_energy(delta: torch.Tensor) -> torch.Tensor:
    """`Σ_t Σ_i δ_ti²` for every example.

    K-FAC takes inputs and output gradients as independent: `F ≈ A ⊗ G` with `A = E[x xᵀ]` over tokens and
    `G = 1/N Σ_t δ_t δ_tᵀ` over the N targets, every token of a sequence on its own ("expand"). Its column sums are
    `A_jj tr(G)`, its trace `tr(A) tr(G)`: unlike `gram` it tells q, k and v apart. Exact for a single token.

    Args:
        delta: gradient of the summed loss by the outputs, `(examples, tokens, d_out)`.

    Returns:
        `(examples,)`, at least fp32.

    """
    return torch.linalg.vector_norm(at_least_fp32(delta), dim=(1, 2)).square()
