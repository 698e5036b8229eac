"""What is measured, over time: smoothed into one score, with everything that a checkpoint must hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from lorank.engine.options import Accumulation, DeviationOptions
from lorank.engine.smoothing import Tensors, combine, smooth_, updates_needed
from lorank.errors import LorankError

Absolute = Literal["batch", "window", "never"]
Average = Callable[[Tensors], Tensors]


class Smoother:
    """Takes in a list of tensors for every mini-batch, and gives a score for every entry.

    Attributes:
        updates: how often the statistic has taken a step.
        needed: updates before a score says anything.

    """

    groups: tuple[str, ...] = ()  # attributes that are lists of tensors, parallel to what is added
    needed = 1

    def __init__(self) -> None:
        self.updates = 0
        self.in_window = 0
        self.clear()

    @property
    def ready(self) -> bool:
        """Whether there are scores to rank by."""
        return self.updates >= self.needed

    def add(self, measured: Tensors) -> None:
        """Take in what was measured on one mini-batch; it is used up."""
        raise NotImplementedError

    def scores(self) -> Tensors:
        """The score of every entry so far, in the shapes of what is added."""
        raise NotImplementedError

    def standard_errors(self) -> Tensors | None:
        """Standard errors of `scores()`; None where they are not known."""
        return None

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything that a checkpoint must hold."""
        held = {f"{group}/{k}": t for group in self.groups for k, t in enumerate(getattr(self, group))}
        return {**held, "updates": torch.tensor(self.updates), "in_window": torch.tensor(self.in_window)}

    def load_state_dict(self, state: Mapping[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        """Continue from what `state_dict` returned."""
        for group in self.groups:
            found = sorted((int(key.partition("/")[2]), key) for key in state if key.partition("/")[0] == group)
            setattr(self, group, [state[key].to(device) for _, key in found])
        self.updates, self.in_window = int(state["updates"]), int(state["in_window"])

    def keep(self, slices: Sequence[tuple[int, torch.Tensor]]) -> None:
        """Forget entries: tensor number k of every group keeps the indices `slices[k] = (dim, index)`."""
        for group in self.groups:
            held = [t.index_select(dim, index) for t, (dim, index) in zip(getattr(self, group), slices, strict=False)]
            setattr(self, group, held)

    def clear(self) -> None:
        """Forget everything: there is nothing more to decide."""
        for group in self.groups:
            setattr(self, group, [])
        self.in_window = 0

    @property
    def state_bytes(self) -> int:
        """Memory that is held now."""
        return sum(t.numel() * t.element_size() for group in self.groups for t in getattr(self, group))


class DeviationSmoother(Smoother):
    """EMAs of the mean `Ī` and of the deviation `Ū` (AdaLoRA, eq. 11 and 12), from means over windows of M mini-batches.

    IGU-LoRA's aggregate is `s_agg = 1/M Σ s`. Two copies of what is scored, in at least fp32; a window of more than one
    mini-batch needs a third for its sum.
    """

    groups = ("mean", "deviation", "sum")
    mean: Tensors
    deviation: Tensors
    sum: Tensors

    def __init__(
        self,
        options: DeviationOptions,
        window: int = 1,
        *,
        absolute: Absolute = "batch",
        average: Average = lambda tensors: tensors,
    ) -> None:
        """Start from zero.

        Args:
            options: decays, and the score that is made of both.
            window: M.
            absolute: where the sign goes: `"batch"` takes |s| of every mini-batch, `"window"` of the window's mean, `"never"`
                leaves it.
            average: over processes that each measured their share of the mini-batch.

        """
        super().__init__()
        self.options, self.window, self.absolute, self.average = options, window, absolute, average
        self.needed = updates_needed(options.score)

    @torch.no_grad()
    def add(self, measured: Tensors) -> None:
        """Take in the signed `s` of one mini-batch; it is used up. A full window becomes one step of the EMAs."""
        measured = self.average(
            measured
        )  # before |s|: shares of a mini-batch are then as the whole of it in one process
        if self.absolute == "batch":
            torch._foreach_abs_(measured)
        self.in_window += 1
        if self.window > 1:
            if self.sum:
                torch._foreach_add_(self.sum, measured)
            else:
                self.sum = measured
            if self.in_window < self.window:
                return
            measured, self.sum = list(torch._foreach_div(self.sum, self.in_window)), []
        if self.absolute == "window":
            torch._foreach_abs_(measured)
        if not self.mean:
            self.mean = [torch.zeros_like(s) for s in measured]
            self.deviation = [torch.zeros_like(s) for s in measured]
        smooth_(self.mean, self.deviation, measured, self.options.mean_decay, self.options.deviation_decay)
        self.updates += 1
        self.in_window = 0

    def scores(self) -> Tensors:
        """`combine` of Ī and Ū, entry by entry."""
        return [
            combine(self.options.score, mean, deviation, epsilon=self.options.epsilon, weight=self.options.ucb_weight)
            for mean, deviation in zip(self.mean, self.deviation, strict=True)
        ]


class RunningSmoother(Smoother):
    """Running statistic of what single batches scored (I-LoRA, reading A7), in at least fp32; no host sync.

    Mean and spread over batches follow Welford. With `n` batches `s_1..s_n`:

    - `mean`: `1/n Σ s_k`; standard error `sd / √n`.
    - `sum`: `Σ s_k`; standard error `√n sd`. Ranks units as `mean` does.
    - `ema`: `e_k = β e_{k-1} + (1-β) s_k` from `e_0 = 0`, divided by `1 - β^n` so that early batches are not damped.
    - `last`: `s_n`.

    For `ema` and `last` the standard error is the spread `sd` of single batches times the norm of their weights.
    """

    groups = ("mean", "squares", "recent")
    mean: Tensors
    squares: Tensors
    recent: Tensors

    def __init__(self, kind: Accumulation = "mean", decay: float = 0.85) -> None:
        super().__init__()
        self.kind, self.decay = kind, decay

    @torch.no_grad()
    def add(self, measured: Tensors) -> None:
        """Take in the scores of one more batch."""
        new = [each.detach().to(torch.promote_types(each.dtype, torch.float32)) for each in measured]
        if not self.mean:
            self.mean, self.squares, self.recent = ([torch.zeros_like(s) for s in new] for _ in range(3))
        self.updates += 1
        for k, value in enumerate(new):
            difference = value - self.mean[k]
            self.mean[k] = self.mean[k] + difference / self.updates
            self.squares[k] = self.squares[k] + difference * (value - self.mean[k])
            self.recent[k] = torch.lerp(value, self.recent[k], self.decay if self.kind == "ema" else 0.0)

    def scores(self) -> Tensors:
        """The statistic.

        Raises:
            LorankError: no batch was scored yet.

        """
        if not self.updates:
            raise LorankError("no batch was scored yet, so there are no scores; score at least one")
        if self.kind == "mean":
            return list(self.mean)
        if self.kind == "sum":
            return [mean * self.updates for mean in self.mean]
        return [r / (1 - self.decay**self.updates) if self.kind == "ema" else r for r in self.recent]

    def standard_errors(self) -> Tensors | None:
        """Standard errors of `scores()`; None before the second batch."""
        n, beta = self.updates, self.decay
        if n < 2:
            return None
        factor = {"mean": n**-0.5, "sum": n**0.5, "last": 1.0}.get(self.kind)
        if factor is None:
            factor = ((1 - beta) / (1 + beta) * (1 + beta**n) / (1 - beta**n)) ** 0.5
        return [(squares / (n - 1)).clamp_min(0).sqrt() * factor for squares in self.squares]
