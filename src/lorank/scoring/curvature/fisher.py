"""The diagonal of the empirical Fisher matrix, exact for every example, without its gradients where that is cheaper."""

from collections.abc import Callable, Iterator

import torch

from lorank.scoring.precision import at_least_fp32

# Numbers of per-example gradients that are held at once: on a CPU as many as its caches hold (1 MiB in fp32), because what is
# done with them then costs little beside their making; else 64 MiB, because small kernels leave a GPU idle.
_HELD_IN_CACHE, _HELD = 2**18, 2**24
_ROWS = 64  # of one example's gradient at least, where there are as many: products of fewer rows are slow


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
    return gradient_columns(x, delta, lambda gradient, rows: gradient.square_())


def gradient_columns(
    x: torch.Tensor, delta: torch.Tensor, value: Callable[[torch.Tensor, slice], torch.Tensor]
) -> torch.Tensor:
    """`Σ_i v(g_ij)` with the gradient `g = Σ_t δ_ti x_tj` of every example, of which only a part is held at a time.

    Args:
        x: inputs, `(examples, tokens, d_in)`.
        delta: gradients by the outputs, `(examples, tokens, d_out)`.
        value: v, of a part of the gradients `(some, rows, d_in)`, which it may change, and which rows these are.

    Returns:
        `(examples, d_in)`.

    """
    columns = x.new_zeros(x.shape[0], x.shape[2])
    for examples, rows in parts_of_gradients(x, delta):
        gradient = torch.bmm(delta[examples, :, rows].transpose(1, 2), x[examples])
        columns[examples] += value(gradient, rows).sum(1)
    return columns


def parts_of_gradients(x: torch.Tensor, delta: torch.Tensor) -> Iterator[tuple[slice, slice]]:
    """Examples and rows of the gradients `(examples, d_out, d_in)` that are made at once, one part after the other."""
    (examples, _, d_in), d_out = x.shape, delta.shape[2]
    held = _HELD_IN_CACHE if x.device.type == "cpu" else _HELD
    some = min(examples, max(1, held // (d_in * min(d_out, _ROWS))))
    rows = max(1, held // (some * d_in), min(d_out, _ROWS))
    for example in range(0, examples, some):
        for row in range(0, d_out, rows):
            yield slice(example, example + some), slice(row, row + rows)
