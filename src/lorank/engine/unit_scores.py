"""From gradients to the sensitivities that are smoothed, and from smoothed sensitivities to one score for each unit."""

import numpy as np
import torch
from accelerate.utils import broadcast, reduce
from torch import nn

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.options import PruningOptions
from lorank.engine.smoothing import SmoothedSensitivity, combine, sensitivity
from lorank.errors import TrainingError
from lorank.processes import processes


def scored_factors(adapter: TripletAdapter, options: PruningOptions) -> tuple[nn.Parameter, ...]:
    """λ, P, Q; without λ where it counts as |λ|; λ alone in triplet state."""
    if options.state == "triplet":
        return adapter.lambdas
    scored = adapter.factors("all")
    return scored[len(adapter.names) :] if options.lambda_score == "absolute" else scored


def training_sensitivities(adapter: TripletAdapter, options: PruningOptions, step: int) -> list[torch.Tensor]:
    """`w · g` from the gradients that training has left: a tensor for each scored factor, or one `(units,)` in triplet state.

    Raises:
        TrainingError: no factor has a gradient.

    """
    factors = scored_factors(adapter, options)
    if all(factor.grad is None for factor in factors):
        raise TrainingError(
            f"no triplet has a gradient at step {step}, so nothing can be scored: the loss does not reach the adapter, or "
            "gradients are kept elsewhere (DeepSpeed, FSDP); use one process or DDP, and check that the adapter is active"
        )
    # A module that did not run on this batch (an expert, say) has no gradient: it scores 0 here.
    gradients = [torch.zeros_like(f) if f.grad is None else f.grad for f in factors]
    if options.state == "triplet":
        return signed(sensitivity([torch.cat(list(factors))], [torch.cat(gradients)]), adapter, options)
    return signed(sensitivity(factors, gradients), adapter, options)


def signed(sensitivities: list[torch.Tensor], adapter: TripletAdapter, options: PruningOptions) -> list[torch.Tensor]:
    """`w · g` with the sign that the options ask for, absolute values left to the smoothing; may change its argument."""
    if options.state == "triplet" and len(sensitivities) > 1:
        sensitivities = [torch.cat(sensitivities)]
    if options.sign == "loss-reduction":
        torch._foreach_neg_(sensitivities)
    elif options.sign == "gradient":
        factors = [factor.detach() for factor in scored_factors(adapter, options)]
        factors = [torch.cat(factors)] if options.state == "triplet" else factors
        signs = [factor.sign().to(s.dtype) for factor, s in zip(factors, sensitivities, strict=True)]
        torch._foreach_mul_(sensitivities, signs)
    return sensitivities


def unit_scores(
    smoothed: SmoothedSensitivity, adapter: TripletAdapter, options: PruningOptions, step: int
) -> dict[str, np.ndarray]:
    """`S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)` (AdaLoRA, eq. 9), or one score a unit in triplet state.

    One host sync. With several processes, the scores of the first.

    Raises:
        TrainingError: a score that is not finite.

    """
    modules = len(adapter.names)
    found = [
        combine(options.score, mean, deviation, epsilon=options.epsilon, weight=options.ucb_weight)
        for mean, deviation in zip(smoothed.mean, smoothed.deviation, strict=True)
    ]
    if options.state == "triplet":
        units = found[0]
    else:
        p, q = found[-2 * modules : -modules], found[-modules:]
        units = torch.cat([left.mean(0) for left in p]) + torch.cat([right.mean(1) for right in q])
        if options.lambda_score == "scored":
            units = units + torch.cat(found[:modules])
    if options.lambda_score == "absolute":
        units = units + torch.cat([values.detach().abs() for values in adapter.lambdas])
    # Kernels may differ in the last bit from process to process; what is decided must not.
    flat = broadcast(units.contiguous()).cpu().double().numpy()
    if not np.isfinite(flat).all():
        raise TrainingError(
            f"scores are not finite at step {step}; lower the learning rate, raise its warm-up, or use bf16 in place of fp16"
        )
    return dict(zip(adapter.names, np.split(flat, np.cumsum(adapter.ranks)[:-1]), strict=True))


def over_processes(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Mean over processes, in one collective."""
    if processes().num_processes == 1:
        return tensors
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]
