"""From gradients to the sensitivities that are smoothed, and from smoothed sensitivities to one score for each unit."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from accelerate.utils import broadcast, reduce
from torch import nn

from lorank.adapter.triplet import TripletAdapter
from lorank.engine.options import Choices, ScoringSetChoices, TrainingBatchChoices
from lorank.engine.smoothing import Tensors, sensitivity
from lorank.errors import LorankWarning, TrainingError
from lorank.processes import processes
from lorank.scores import ImportanceScores

NAMED = 3  # modules that a warning names


def scored_factors(adapter: TripletAdapter, options: TrainingBatchChoices) -> tuple[nn.Parameter, ...]:
    """λ, P, Q; without λ where it counts as |λ|; λ alone in triplet state."""
    if options.smooth.state == "triplet":
        return adapter.lambdas
    scored = adapter.factors("all")
    return scored[len(adapter.names) :] if options.smooth.lambda_score == "absolute" else scored


def training_sensitivities(adapter: TripletAdapter, options: TrainingBatchChoices, step: int) -> list[torch.Tensor]:
    """`w · g` from the gradients that training has left: a tensor for each scored factor, or one `(units,)` in triplet state.

    Raises:
        TrainingError: no factor has a gradient.

    """
    factors = scored_factors(adapter, options)
    if all(factor.grad is None for factor in factors):
        raise TrainingError(
            f"no triplet has a gradient at step {step}, so nothing can be scored: the loss does not reach the adapter, or "
            "gradients are kept elsewhere (DeepSpeed); use DDP or FSDP version 2, and check that the adapter is active"
        )
    # A module that did not run on this batch (an expert, say) has no gradient: it scores 0 here.
    gradients = [torch.zeros_like(f) if f.grad is None else f.grad for f in factors]
    if options.smooth.state == "triplet":
        return signed(sensitivity([torch.cat(list(factors))], [torch.cat(gradients)]), adapter, options)
    return signed(sensitivity(factors, gradients), adapter, options)


def signed(
    sensitivities: list[torch.Tensor], adapter: TripletAdapter, options: TrainingBatchChoices
) -> list[torch.Tensor]:
    """`w · g` with the sign that the options ask for, absolute values left to the smoothing; may change its argument."""
    if options.smooth.state == "triplet" and len(sensitivities) > 1:
        sensitivities = [torch.cat(sensitivities)]
    if options.measure.sign == "loss-reduction":
        torch._foreach_neg_(sensitivities)
    elif options.measure.sign == "gradient":
        factors = [factor.detach() for factor in scored_factors(adapter, options)]
        factors = [torch.cat(factors)] if options.smooth.state == "triplet" else factors
        signs = [factor.sign().to(s.dtype) for factor, s in zip(factors, sensitivities, strict=True)]
        torch._foreach_mul_(sensitivities, signs)
    return sensitivities


def unit_scores(scores: Tensors, adapter: TripletAdapter, options: Choices) -> torch.Tensor:
    """One score for each unit of rank, `(units,)`, from the smoothed scores of whatever was measured.

    `S_i = s(λ_i) + mean_j s(P_ji) + mean_j s(Q_ij)` (AdaLoRA, eq. 9); or what is there already, where units are smoothed.
    """
    if isinstance(options, ScoringSetChoices):
        return scores[0]
    modules = len(adapter.names)
    if options.smooth.state == "triplet":
        units = scores[0]
    else:
        p, q = scores[-2 * modules : -modules], scores[-modules:]
        units = torch.cat([left.mean(0) for left in p]) + torch.cat([right.mean(1) for right in q])
        if options.smooth.lambda_score == "scored":
            units = units + torch.cat(scores[:modules])
    if options.smooth.lambda_score == "absolute":
        units = units + torch.cat([values.detach().abs() for values in adapter.lambdas])
    return units


class FirstBad:
    """The first step with a gradient of λ, or with something measured, that is not finite; on the device, without a host sync.

    Attributes:
        step: counted from 1; 0: none yet.

    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.step = torch.zeros((), dtype=torch.long, device=device)

    def note(self, step: int, found: Sequence[torch.Tensor | None]) -> None:
        """Look at gradients and at what was measured at a step that was made."""
        if held := [tensor for tensor in found if tensor is not None and tensor.numel()]:
            bad = ~torch.isfinite(torch.stack(torch._foreach_norm(held))).all()
            self.step = torch.where(bad & (self.step == 0), step, self.step)

    def load(self, step: torch.Tensor | None) -> None:
        """Continue from the `step` of a checkpoint; None, of an earlier version, knows nothing."""
        self.step = torch.zeros_like(self.step) if step is None else step.to(self.step.device)


def by_module(
    units: torch.Tensor, adapter: TripletAdapter, step: int, first_bad: FirstBad | None = None
) -> dict[str, np.ndarray]:
    """Module name -> the values `(r_m,)` of its units. One host sync. With several processes, the values of the first.

    Raises:
        TrainingError: a value that is not finite; names the step of `first_bad`, too.

    """
    # Kernels may differ in the last bit from process to process; what is decided must not.
    flat = broadcast(units.contiguous()).cpu().double().numpy()
    if not np.isfinite(flat).all():
        since = 0 if first_bad is None else int(first_bad.step)
        first = f": the loss or a gradient is not since step {since}" if since else ""
        raise TrainingError(
            f"scores are not finite at step {step}{first}; lower the learning rate, raise its warm-up, or use bf16 in place of "
            "fp16, and look at the examples of that step"
        )
    return dict(zip(adapter.names, np.split(flat, np.cumsum(adapter.ranks)[:-1]), strict=True))


def over_processes(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Mean over processes, in one collective."""
    if processes().num_processes == 1:
        return tensors
    flat = reduce(torch.cat([tensor.flatten() for tensor in tensors]), "mean")
    return [part.view_as(t) for part, t in zip(flat.split([t.numel() for t in tensors]), tensors, strict=True)]


def sliced_factors(
    adapter: TripletAdapter, options: Choices, ranks: Sequence[int], kept: Mapping[str, torch.Tensor]
) -> list[tuple[int, torch.Tensor]]:
    """For each tensor that is smoothed, the dimension that units lie along and the positions that are kept.

    Args:
        adapter: names the modules.
        options: say what is smoothed.
        ranks: of the modules before.
        kept: module name -> positions.

    """
    if isinstance(options, ScoringSetChoices) or options.smooth.state == "triplet":
        starts = np.cumsum([0, *ranks[:-1]])
        return [(0, torch.cat([kept[name] + int(s) for s, name in zip(starts, adapter.names, strict=True)]))]
    dims = (1, 0) if options.smooth.lambda_score == "absolute" else (0, 1, 0)
    return [(dim, kept[name]) for dim in dims for name in adapter.names]


def warn_of_dead_triplets(scores: ImportanceScores) -> None:
    """Say it where more than half of the triplets of a module, or of all, have a score of exactly 0.

    A triplet that was cut has the score of its last cut.

    Warns:
        LorankWarning: how many triplets, in which modules.

    """
    dead = {name: int((values == 0).sum()) for name, values in scores.scores.items()}
    units = {name: len(values) for name, values in scores.scores.items()}
    named = [name for name, count in dead.items() if 2 * count > units[name]]
    count, total = sum(dead.values()), sum(units.values())
    if named:
        shown = ", ".join(f"{name} ({dead[name]} of {units[name]})" for name in named[:NAMED])
        more = f" and {len(named) - NAMED} more modules" if len(named) > NAMED else ""
        warnings.warn(
            f"the score is exactly 0 for {count:,} of {total:,} triplets, which had no influence on the loss when they were "
            f"scored: {shown}{more}; look whether the forward pass reaches these modules, leave them out with exclude_modules, "
            "or train in a wider dtype",
            LorankWarning,
            stacklevel=3,
        )
