"""Sensitivity over time: EMA of its mean and of its deviation, and the score made of both.

AdaLoRA, eq. 9 to 13; IGU-LoRA, eq. 9 to 11.

Each function has a `_plain` form, one tensor and one formula at a time: the specification. The form in use does the same
for a whole list of tensors in a few fused operations.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from lorank.scoring.precision import at_least_fp32

ScoreKind = Literal["product", "ratio", "smoothed-ratio", "mean", "ucb"]
Absolute = Literal["batch", "window", "never"]
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


class SmoothedSensitivity:
    """Ī and Ū of a list of tensors, from sums over windows of M mini-batches (IGU-LoRA: `s_agg = 1/M Σ s`).

    Two copies of what is scored, in at least fp32; a window of more than one mini-batch needs a third for its sum.
    """

    def __init__(
        self,
        mean_decay: float,
        deviation_decay: float,
        window: int,
        *,
        absolute: Absolute = "batch",
        average: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    ) -> None:
        """Start from zero; `average` is over processes that each measured a mini-batch of their own."""
        self.average = average
        self.mean_decay, self.deviation_decay, self.window, self.absolute = (
            mean_decay,
            deviation_decay,
            window,
            absolute,
        )
        self.mean: Tensors = []
        self.deviation: Tensors = []
        self.sum: Tensors = []
        self.in_window = 0
        self.updates = 0

    @torch.no_grad()
    def add(self, sensitivities: Tensors) -> None:
        """Take in the signed `s` of one mini-batch; it is used up. A full window becomes one step of the EMAs.

        `absolute` says where the sign goes: `"batch"` takes |s| of every mini-batch, `"window"` of the window's mean,
        `"never"` leaves it.
        """
        if self.absolute == "batch":
            torch._foreach_abs_(sensitivities)
        sensitivities = self.average(sensitivities)
        self.in_window += 1
        if self.window > 1:
            if self.sum:
                torch._foreach_add_(self.sum, sensitivities)
            else:
                self.sum = sensitivities
            if self.in_window < self.window:
                return
            sensitivities, self.sum = list(torch._foreach_div(self.sum, self.in_window)), []
        if self.absolute == "window":
            torch._foreach_abs_(sensitivities)
        if not self.mean:
            self.mean = [torch.zeros_like(s) for s in sensitivities]
            self.deviation = [torch.zeros_like(s) for s in sensitivities]
        smooth_(self.mean, self.deviation, sensitivities, self.mean_decay, self.deviation_decay)
        self.updates += 1
        self.in_window = 0

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint must hold."""
        groups = {"mean": self.mean, "deviation": self.deviation, "sum": self.sum}
        return {f"{group}/{number}": tensor for group, held in groups.items() for number, tensor in enumerate(held)}

    def restore(self, tensors: dict[str, torch.Tensor], in_window: int, updates: int) -> None:
        """Continue from what `tensors` returned."""
        for group in ("mean", "deviation", "sum"):
            found = sorted((int(key.partition("/")[2]), key) for key in tensors if key.partition("/")[0] == group)
            setattr(self, group, [tensors[key] for _, key in found])
        self.in_window, self.updates = in_window, updates

    def keep(self, slices: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Forget entries: tensor number k of every group keeps the indices `slices[k] = (dim, index)`."""
        for group in ("mean", "deviation", "sum"):
            held = [t.index_select(dim, index) for t, (dim, index) in zip(getattr(self, group), slices, strict=False)]
            setattr(self, group, held)

    def clear(self) -> None:
        """Forget everything: there is nothing more to decide."""
        self.mean, self.deviation, self.sum, self.in_window = [], [], [], 0

    @property
    def state_bytes(self) -> int:
        """Memory that is held now."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())
