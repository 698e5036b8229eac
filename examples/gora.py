"""GoRA (arXiv 2502.12171) as a method of your own: `lorank run recipe.yaml --plugin examples/gora.py` with `method: gora`."""

import time
from typing import TYPE_CHECKING, Any

from pydantic import Field

import lorank
from lorank.engine.options import RankOptions
from lorank.methods import FrozenModelChoices
from lorank.scoring.options import CalibrationOptions

if TYPE_CHECKING:
    import torch
    from peft import PeftModel

    from lorank.scoring.one_shot import ScoringInput


class GoRAOptions(CalibrationOptions):
    """What a recipe may say under `measure`, beside `examples` and `batch_size`."""

    step: float = Field(0.05, ge=0, description="size of the start: how many times the gradient, as a learning rate")


def accumulated_gradients(scoring: "ScoringInput") -> "tuple[dict[str, torch.Tensor], int]":
    """Gradient `G` of the mean loss of all calibration examples, `(d_out, d_in)` of each target, and how many examples."""
    from lorank.scoring.batches import on_device_of
    from lorank.scoring.layer_hooks import frozen
    from lorank.scoring.undisturbed import undisturbed

    layers: dict[str, Any] = {one.name: scoring.model.get_submodule(one.name) for one in scoring.targets}
    layers = {name: getattr(layer, "base_layer", layer) for name, layer in layers.items()}  # inside of an adapter
    before, examples, labels = {name: layer.weight.grad for name, layer in layers.items()}, 0, 0
    with frozen(scoring.model), undisturbed(scoring.model):
        try:
            for layer in layers.values():
                layer.weight.requires_grad_(True).grad = None
            for batch in scoring.needed_batches():
                total, counts = scoring.loss(scoring.model, on_device_of(scoring.model, batch))
                total.backward()  # PyTorch adds up
                examples, labels = examples + len(counts), labels + int(counts.sum())
            found = {
                name: layer.weight.grad / labels for name, layer in layers.items() if layer.weight.grad is not None
            }
        finally:
            for name, layer in layers.items():
                layer.weight.requires_grad_(False).grad = before[name]
    # transformers' Conv1D holds its weight the other way round.
    return {name: g.T if type(layers[name]).__name__ == "Conv1D" else g for name, g in found.items()}, examples


def gradient_scores(scoring: "ScoringInput") -> "lorank.ImportanceScores":
    """Mean of `|W ∘ G|` of each module over `√(d_in + d_out)`, so that ranks in proportion are GoRA's."""
    from lorank.scoring.calibration import weight_of

    began, values = time.perf_counter(), {}
    gradients, examples = accumulated_gradients(scoring)
    targets = [target for target in scoring.targets if target.name in gradients]  # others had no part in the loss
    for target in targets:
        products = weight_of(scoring.model.get_submodule(target.name)) * gradients[target.name]
        values[target.name] = (products.abs().mean() / target.unit_cost**0.5).double().cpu().numpy().reshape(1)
    made = {"calibration": scoring.options.model_dump(mode="json"), "examples": examples}
    made["seconds"] = round(time.perf_counter() - began, 3)
    return scoring.scores(values, max_ranks={target.name: target.max_rank for target in targets}, provenance=made)


def projected(gradient: "torch.Tensor", a: "torch.Tensor") -> "torch.Tensor":
    """`G Aᵀ (A Aᵀ)⁻¹`, `(d_out, r)`: of all B that for which `B A` is nearest to `G` in the Frobenius norm."""
    from torch.linalg import solve

    wide, rows = gradient.double(), a.double()
    return solve(rows @ rows.T, rows @ wide.T).T.to(a.dtype)  # lstsq does not give the same bits each time


def start_at_projected_gradient(model: "PeftModel", scoring: "ScoringInput") -> None:
    """`A` stays random, as PEFT makes it; `B` makes of the adapter's update a step against the gradient."""
    step = scoring.chosen(GoRAOptions).step
    for name, gradient in accumulated_gradients(scoring)[0].items():
        layer: Any = model.get_base_model().get_submodule(name)
        for adapter, lora_a in layer.lora_A.items():
            a, b = lora_a.weight.detach(), layer.lora_B[adapter].weight.detach()
            # A projection on r random directions of d_in keeps about √(r / d_in) of the norm.
            size = step * (a.shape[1] / a.shape[0]) ** 0.5 / layer.scaling[adapter]
            b.copy_(-size * projected(gradient, a))


lorank.register(
    lorank.Method(
        name="gora",
        reference="GoRA, arXiv 2502.12171",
        presets={"paper": FrozenModelChoices(measure=GoRAOptions(), ranks=RankOptions(rank_by="score"))},
        default_preset="paper",
        scored="modules",
        scorer=gradient_scores,
        start=start_at_projected_gradient,
    )
)
