"""The diagonal of the empirical Fisher matrix, exact for every example, without its gradients where that is cheaper."""

from collections.abc import Iterator

import torch

from lorank.scoring.precision import at_least_fp32

# Numbers of per-example gradients that are held at once: 64 MiB in fp32.
_HELD = 2**24


def squared_gradient_columns(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """`Σ_i g_ij²` with `g = Σ_t δ_t x_tᵀ`, the gradient of one example's loss by the weights `W: (d_out, d_in)`.

    Summed over examples and divided by the number of targets it is the diagonal of the empirical Fisher matrix, which in
    expectation over labels that the model itself predicts is that of the generalised Gauss-Newton matrix, and of the Hessian
    where the fit is good. Two equal forms, of which the cheaper is taken:

    - the products of tokens, `Σ_{t,s} (δ_t · δ_s) x_tj x_sj`: `T² (d_in + d_out)` multiplications, no gradient is made;
    - the gradients of a few examples at a time: `T d_in d_out`.

    Args:
        x: inputs, `(examples, tokens, d_in)`.
        delta: gradient of the summed loss by the outputs, `(examples, tokens, d_out)`.

    Returns:
        `(examples, d_in)`, at least fp32.

    """
    tokens, d_in, d_out = x.shape[1], x.shape[2], delta.shape[2]
    by = by_token_products if tokens * (d_in + d_out) <= d_in * d_out else by_gradients
    return by(at_least_fp32(x), at_least_fp32(delta))


def by_token_products(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """`Σ_t x_tj Σ_s (δ_t · δ_s) x_sj`."""
    products = torch.bmm(delta, delta.transpose(1, 2))
    return (torch.bmm(products, x) * x).sum(1)


def by_gradients(x: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """`Σ_i (Σ_t δ_ti x_tj)²`, the plain form."""
    return torch.cat([torch.linalg.vector_norm(g, dim=1).square() for g in example_gradients(x, delta)])


def example_gradients(x: torch.Tensor, delta: torch.Tensor) -> Iterator[torch.Tensor]:
    """Gradients `(some, d_out, d_in)` of a few examples at a time, as many as fit into 64 MiB, one after the other."""
    some = max(1, _HELD // (x.shape[2] * delta.shape[2]))
    pairs = zip(delta.transpose(1, 2).split(some), x.split(some), strict=True)
    return (torch.bmm(*pair) for pair in pairs)
