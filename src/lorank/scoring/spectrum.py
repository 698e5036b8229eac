"""From the diagonal of a layer's Hessian to one score: its trace, how concentrated it is, and how they are combined."""

import math

import torch


def topk_share(columns: torch.Tensor, share: float) -> torch.Tensor:
    """Share of the total that the `ceil(share · d_in)` largest columns have; 1 / d_in .. 1, 0 where all are zero.

    Sensitivity-LoRA names a local metric "Topk"; what it is of is not found in any source. Our reading:
    the share of the trace, over input columns.

    Args:
        columns: `h_j`, `(..., d_in)`; below zero counts as zero.
        share: of the columns, 0..1.

    Returns:
        `(...)`.

    """
    columns = columns.clamp_min(0)
    largest = columns.topk(math.ceil(share * columns.shape[-1]), dim=-1, sorted=False).values.sum(-1)
    return torch.nan_to_num(largest / columns.sum(-1))


def effective_rank(columns: torch.Tensor) -> torch.Tensor:
    """`exp(-Σ p_j ln p_j)` with `p = h / Σ h`, the entropy form of Roy and Vetterli; 1..d_in, 0 where all are zero.

    Sensitivity-LoRA names a local metric "Effective Rank"; its definition is not found. Our reading: the
    number of input columns among which the sensitivity is spread.

    Args:
        columns: `h_j`, `(..., d_in)`; below zero counts as zero.

    Returns:
        `(...)`.

    """
    columns = columns.clamp_min(0)
    total = columns.sum(-1, keepdim=True)
    shares = torch.nan_to_num(columns / total)
    return torch.where(total[..., 0] > 0, torch.exp(torch.special.entr(shares).sum(-1)), 0.0)


def combined(metrics: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    """`S_m = Π_k (M_km / mean_m M_km)^w_k`: metrics of all modules with their weights, each on the scale of its mean.

    How Sensitivity-LoRA combines global and local metrics is not found; this is our choice. A metric of
    weight 0 is left out; below zero counts as zero.

    Args:
        metrics: values `(..., modules)` and the weight of each.

    Returns:
        `(..., modules)`; zero for every module where the mean of a metric is.

    """
    score = torch.ones_like(metrics[0][0])
    for values, weight in metrics:
        if weight:
            values = values.clamp_min(0)
            score = score * torch.nan_to_num(values / values.mean(-1, keepdim=True)) ** weight
    return score
