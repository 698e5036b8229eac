"""Networks whose curvature is known: batches are `x: (examples, d)` or `(examples, tokens, d)`, and `labels`."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lorank.scoring.calibration import CalibrationSums, calibrate
from lorank.targets import Target


class Stack(nn.Module):
    """Linear layers with tanh between them; `how` is the loss of one example."""

    def __init__(self, *widths: int, how: str = "squares", seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(
            nn.Linear(d_in, d_out, bias=False, dtype=torch.float64) for d_in, d_out in pairwise(widths)
        )
        self.how = how

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)

    def losses(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of each example, `(examples,)`."""
        outputs = self(x)
        if self.how == "squares":
            return (outputs - labels).square().flatten(1).sum(1)
        return cross_entropy(outputs, labels, reduction="none")

    def targets(self) -> tuple[Target, ...]:
        return tuple(
            Target(f"layers.{k}", layer.in_features, layer.out_features) for k, layer in enumerate(self.layers)
        )


def summed(model: nn.Module, batch: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    losses = model.losses(batch["x"], batch["labels"])  # type: ignore[operator]
    return losses.sum(), torch.ones(len(losses))


def column_sums(model: Stack, batches: list[dict[str, torch.Tensor]], quantity: Any, **options: Any) -> CalibrationSums:
    return calibrate(model, model.targets(), batches, quantity, folds=2, loss=summed, **options)


def mean_columns(sums: CalibrationSums, name: str = "layers.0") -> torch.Tensor:
    """`(d_in,)`: over all folds."""
    return sums.columns[name].sum(0) / sums.targets.sum()


def hessian_columns(model: Stack, batch: Mapping[str, torch.Tensor], layer: int) -> torch.Tensor:
    """`Σ_i h_ij` of the mean loss, from the dense Hessian by torch.func."""
    names = [name for name, _ in model.named_parameters()]
    values = [parameter.detach() for parameter in model.parameters()]

    def mean_loss(weight: torch.Tensor) -> torch.Tensor:
        own = [weight if k == layer else value for k, value in enumerate(values)]
        moved = dict(zip(names, own, strict=True))
        outputs = torch.func.functional_call(model, moved, (batch["x"],))
        if model.how == "squares":
            return (outputs - batch["labels"]).square().flatten(1).sum(1).mean()
        return cross_entropy(outputs, batch["labels"])

    dense = torch.func.hessian(mean_loss)(values[layer])
    return torch.einsum("ijij->ij", dense).sum(0)
