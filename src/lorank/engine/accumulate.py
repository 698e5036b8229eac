"""How the scores of single scoring batches become one score (reading A7)."""

from typing import Literal

import torch

from lorank.errors import LorankError

Accumulation = Literal["mean", "sum", "ema", "last"]


class ScoreAccumulator:
    """Running statistic of the per-batch scores of all units, in fp32 on the scores' device; no host sync.

    Mean and spread over batches follow Welford. With `n` batches `s_1..s_n`:

    - `mean`: `1/n Σ s_k`; standard error `sd / √n`.
    - `sum`: `Σ s_k`; standard error `√n sd`. Ranks units as `mean` does.
    - `ema`: `e_k = β e_{k-1} + (1-β) s_k` from `e_0 = 0`, divided by `1 - β^n` so that early batches are not damped.
    - `last`: `s_n`.

    For `ema` and `last` the standard error is the spread `sd` of single batches times the norm of their weights.
    """

    def __init__(self, kind: Accumulation = "mean", decay: float = 0.85) -> None:
        self.kind = kind
        self.decay = decay
        self.count = 0
        self._mean: torch.Tensor | None = None
        self._squares: torch.Tensor | None = None
        self._recent: torch.Tensor | None = None

    def add(self, batch_scores: torch.Tensor) -> None:
        """Take in the scores `(units,)` of one more batch."""
        new = batch_scores.detach().float()
        if self._mean is None or self._squares is None or self._recent is None:
            self._mean, self._squares, self._recent = (torch.zeros_like(new) for _ in range(3))
        self.count += 1
        difference = new - self._mean
        self._mean = self._mean + difference / self.count
        self._squares = self._squares + difference * (new - self._mean)
        self._recent = torch.lerp(new, self._recent, self.decay if self.kind == "ema" else 0.0)

    def value(self) -> torch.Tensor:
        """Score of every unit, `(units,)` fp32."""
        mean, _, recent = self._state()
        if self.kind == "mean":
            return mean
        if self.kind == "sum":
            return mean * self.count
        return recent / (1 - self.decay**self.count) if self.kind == "ema" else recent

    def standard_error(self) -> torch.Tensor | None:
        """Standard error of `value()`, `(units,)` fp32; None before the second batch."""
        if self.count < 2:
            return None
        _, squares, _ = self._state()
        deviation = (squares / (self.count - 1)).clamp_min(0).sqrt()
        if self.kind in ("mean", "sum"):
            return deviation / self.count**0.5 if self.kind == "mean" else deviation * self.count**0.5
        if self.kind == "last":
            return deviation
        beta, n = self.decay, self.count
        return deviation * ((1 - beta) / (1 + beta) * (1 + beta**n) / (1 - beta**n)) ** 0.5

    def state(self) -> dict[str, torch.Tensor]:
        """Tensors from which `restore` continues exactly."""
        if self.count == 0:
            return {"count": torch.tensor(0)}
        mean, squares, recent = self._state()
        return {"count": torch.tensor(self.count), "mean": mean, "squares": squares, "recent": recent}

    def restore(self, state: dict[str, torch.Tensor], device: torch.device | str = "cpu") -> None:
        """Continue from what `state` returned."""
        self.count = int(state["count"])
        if self.count:
            self._mean, self._squares, self._recent = (state[key].to(device) for key in ("mean", "squares", "recent"))

    def _state(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self._mean is None or self._squares is None or self._recent is None:
            raise LorankError("no batch was scored yet, so there are no scores; score at least one")
        return self._mean, self._squares, self._recent
