"""Sensitivity over time: EMA of its mean and of its deviation, and the score made of both.

AdaLoRA, eq. 9 to 13; IGU-LoRA, eq. 9 to 11.

Each function has a `_plain` form, one tensor and one formula at a time: the specification. The form in use does the same
for a whole list of tensors in a few fused operations.
"""

from collections.abc import Sequence

import torch

from lorank.engine.options import ScoreKind
from lorank.scoring.precision import at_least_fp32

Tensors = list[torch.Tensor]


def sensitivity_plain(values: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> Tensors:
    """`w · g` of every entry, in at least fp32; its absolute value is AdaLoRA's eq. 10."""
    return [at_least_fp32(w.detach()) * at_least_fp32(g.detach()) for w, g in zip(values, gradients, strict=True)]


def sensitivity(values: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor]) -> Tensors:
    """Same numbers as `sensitivity_plain`."""
    wide = [at_least_fp32(w.detach()) for w in values]
    return list(torch._foreach_mul(wide, [at_least_fp32(g.detach()) for g in gradients]))


def smooth_plain(
    mean: Tensors, deviation: Tensors, new: Tensors, mean_decay: float, deviation_decay: float
) -> tuple[Tensors, Tensors]:
    """`Ī ← β1 Ī + (1-β1) I`, then `Ū ← β2 Ū + (1-β2) |I - Ī|` with the new Ī (AdaLoRA, eq. 11 and 12)."""
    means = [mean_decay * old + (1 - mean_decay) * s for old, s in zip(mean, new, strict=True)]
    deviations = [
        deviation_decay * old + (1 - deviation_decay) * (s - m).abs()
        for old, s, m in zip(deviation, new, means, strict=True)
    ]
    return means, deviations


@torch.no_grad()
def smooth_(mean: Tensors, deviation: Tensors, new: Tensors, mean_decay: float, deviation_decay: float) -> None:
    """Same numbers as `smooth_plain`, in place; `new` is used up."""
    torch._foreach_mul_(mean, mean_decay)
    torch._foreach_add_(mean, new, alpha=1 - mean_decay)
    torch._foreach_sub_(new, mean)
    torch._foreach_abs_(new)
    torch._foreach_mul_(deviation, deviation_decay)
    torch._foreach_add_(deviation, new, alpha=1 - deviation_decay)


def combine(
    kind: ScoreKind, mean: torch.Tensor, deviation: torch.Tensor, *, epsilon: float, weight: float
) -> torch.Tensor:
    """Score of every entry from Ī and Ū.

    | kind               | score             | from                                                                  |
    |--------------------|-------------------|-----------------------------------------------------------------------|
    | `"product"`        | Ī Ū               | AdaLoRA, eq. 13                                                       |
    | `"ratio"`          | Ī / (Ū + ε)       | IGU-LoRA, eq. 11                                                      |
    | `"smoothed-ratio"` | (Ī + ε) / (Ū + ε) | IGU-LoRA's code                                                       |
    | `"mean"`           | Ī                 | smoothed sensitivity alone                                            |
    | `"ucb"`            | Ī + c Ū           | upper confidence bound: the unsure get the benefit of the doubt       |

    Both ratios are the same for a sensitivity and for a thousand times that sensitivity (ε aside): they rank steadiness,
    not size.
    """
    if kind == "product":
        return mean * deviation
    if kind == "ratio":
        return mean / (deviation + epsilon)
    if kind == "smoothed-ratio":
        return (mean + epsilon) / (deviation + epsilon)
    return mean if kind == "mean" else mean + weight * deviation


def updates_needed(kind: ScoreKind) -> int:
    """Updates before a score says anything: after one from zero a ratio is 1/β1 for every entry."""
    return 2 if kind in ("ratio", "smoothed-ratio") else 1
