"""Where the parameters of a model are, and which of them no adapter touches."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lorank.model_parts import heads_of, unwrapped
from lorank.module_names import has_part, is_within
from lorank.targets import Target, linear_layers

ADAPTED = "adapted linear layers"
ADAPTED_EXPERTS = "adapted experts"
# In the order in which a parameter is asked where it belongs.
KINDS = (
    ADAPTED, ADAPTED_EXPERTS, "vision towers", "audio towers", "embeddings", "heads", "experts", "norms",
    "linear layers without adapter", "biases", "other",
)  # fmt: skip


def parameters_by_kind(model: nn.Module, targets: Sequence[Target]) -> dict[str, int]:
    """Kind of parameter -> number of parameters, those of kinds that the model has; a tied weight counts once.

    The numbers add up to all parameters of the model. An output embedding that is tied is an embedding. Experts are what has
    `experts` in its name, one tensor for all of them or a layer for each; an expert's layer that is a target is adapted, and so
    is such a tensor.

    Args:
        model: with its head, on any device.
        targets: layers that get adapters.

    """
    inner = unwrapped(model)
    weights = {target.name for target in targets}
    towers, heads = _towers(inner), {id(part) for head in heads_of(inner) for part in head.modules()}
    linears, seen, found = linear_layers(inner), set[int](), dict.fromkeys(KINDS, 0)
    modules = list(inner.named_modules())
    # An embedding first, so that a tied weight is one.
    modules.sort(key=lambda pair: not isinstance(pair[1], nn.Embedding))
    for name, module in modules:
        for leaf, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            full = f"{name}.{leaf}" if name else leaf
            tower = next((kind for kind, names in towers.items() if is_within(full, names)), None)
            if name in weights and leaf == "weight":
                kind = ADAPTED
            elif full in weights:
                kind = ADAPTED_EXPERTS
            elif tower is not None:
                kind = tower
            elif isinstance(module, nn.Embedding):
                kind = "embeddings"
            elif id(module) in heads:
                kind = "heads"
            elif has_part(full, "experts"):
                kind = "experts"
            elif "norm" in type(module).__name__.lower():
                kind = "norms"
            elif leaf == "bias":
                kind = "biases"
            else:
                kind = "linear layers without adapter" if name in linears else "other"
            found[kind] += parameter.numel()
    return {kind: number for kind, number in found.items() if number}


def _towers(model: nn.Module) -> dict[str, list[str]]:
    """Kind of tower -> full names of the parts with a config of their own that is of images or of sounds."""
    found: dict[str, list[str]] = {"vision towers": [], "audio towers": []}
    for name, module in model.named_modules():
        if not name or not isinstance(module, PreTrainedModel):
            continue
        config: Any = module.config
        own = type(config).__name__.lower()
        if config is not getattr(model, "config", None):
            for kind, word in (("vision towers", "vision"), ("audio towers", "audio")):
                if word in own:
                    found[kind].append(name)
    return found
