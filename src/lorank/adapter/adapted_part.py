"""Where in a model the adapters are: the model itself, or a part of it (a SentenceTransformer's transformer)."""

import copy
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from lorank.errors import AdapterError


def adapted_part(model: nn.Module) -> nn.Module:
    """The one part of `model` that carries PEFT adapters, by `get_peft_model` or by transformers' `add_adapter`.

    Raises:
        AdapterError: there is none, or more than one.

    """
    found = list(_carriers(model))
    if not found:
        kind = type(model).__name__
        # A SentenceTransformer saves and loads what add_adapter made.
        inside = hasattr(model, "add_adapter") and not isinstance(model, PreTrainedModel)
        way = "model.add_adapter(LoraConfig(r=8, ...))" if inside else "get_peft_model(model, LoraConfig(r=8, ...))"
        raise AdapterError(f"{kind} has no adapters, so there is nothing to allocate; add one first: {way}")
    if len(found) > 1:
        raise AdapterError(
            f"{type(model).__name__} has adapters on {len(found)} models inside of it "
            f"({', '.join(type(base_of(part)).__name__ for part in found)}); a budget is for one, put an adapter on one"
        )
    return found[0]


def base_of(part: nn.Module) -> nn.Module:
    """The model without its PeftModel; adapted modules are named from here."""
    base: nn.Module = part.get_base_model() if isinstance(part, PeftModel) else part
    return base


def own_config(part: nn.Module, adapter_name: str) -> Any:
    """The adapter's PEFT config, which no other adapter shares afterwards.

    TRL gives the copy of a trained adapter that it keeps as reference the same config: what cuts write into it, the ranks of the
    one that trains, would be said of the other too.
    """
    configs: Any = part.peft_config
    if any(config is configs[adapter_name] for name, config in configs.items() if name != adapter_name):
        configs[adapter_name] = copy.deepcopy(configs[adapter_name])
    return configs[adapter_name]


def _carriers(module: nn.Module) -> Iterator[nn.Module]:
    if isinstance(module, PeftModel) or (isinstance(module, PreTrainedModel) and module._hf_peft_config_loaded):
        yield module
        return
    for child in module.children():
        yield from _carriers(child)
