"""The regulariser that keeps the columns of P and the rows of Q orthonormal (AdaLoRA, eq. 4)."""

from collections import defaultdict

import torch

from lorank.adapter.triplet import TripletAdapter


def orthogonality_plain(adapter: TripletAdapter) -> torch.Tensor:
    """Mean over all P and Q of `‖PᵀP - I‖_F` and `‖QQᵀ - I‖_F`: the specification, one matrix at a time.

    The unsquared norm and the mean are those of AdaLoRA's code; its paper prints a sum of squares.
    """
    wide = [*(p.T for p in adapter.p), *adapter.q]
    norms = [torch.linalg.matrix_norm(w @ w.T - torch.eye(len(w), dtype=w.dtype, device=w.device)) for w in wide]
    return torch.stack(norms).mean()


def orthogonality(adapter: TripletAdapter) -> torch.Tensor:
    """Same number as `orthogonality_plain`; matrices of one shape go through one batched product. Scalar tensor."""
    by_shape: dict[torch.Size, list[torch.Tensor]] = defaultdict(list)
    for matrix in (*(p.T for p in adapter.p), *adapter.q):
        by_shape[matrix.shape].append(matrix)
    norms = []
    for (rank, _), matrices in by_shape.items():
        wide = torch.stack(matrices)
        gram = wide @ wide.mT
        norms.append(torch.linalg.matrix_norm(gram - torch.eye(rank, dtype=gram.dtype, device=gram.device)))
    return torch.cat(norms).mean()
