"""How large the model is that adapters are put on: the one number that a budget in percent is a share of."""

import math
from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lorank.targets import unwrapped


def base_parameters(model: nn.Module) -> int:
    """Parameters of the pretrained model under its task head: what `1 %` is a hundredth of, everywhere in lorank.

    It is the same number for every class of one architecture, for a model on the meta device, compiled, wrapped for several
    devices, quantised, or with adapters on it. Counted is transformers' `model.base_model` (the attribute that
    `base_model_prefix` names; the whole module where there is none), embeddings included, a tied weight once. Not counted are
    heads (`heads_of`: classifier, output embeddings), poolers (modules called `pooler`, which some classes of an architecture
    have and others do not), adapters, copies in `modules_to_save` and trained tokens. A weight packed to 4 bits counts as the
    weights that it stands for.
    """
    base = pretrained_part(model)
    seen = {id(parameter) for head in heads_of(base) for parameter in head.parameters()}
    # An output embedding that is tied is an input embedding too, which counts.
    seen -= {id(module.weight) for module in base.modules() if isinstance(module, nn.Embedding)}
    total = 0
    for parameter, stands_for in _weights(base):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            total += stands_for
    return total


def pretrained_part(model: nn.Module) -> nn.Module:
    """The base model inside of wrappers, adapters and a task head."""
    inner = task_model(model)
    return getattr(inner, getattr(inner, "base_model_prefix", "") or "", inner)


def task_model(model: nn.Module) -> nn.Module:
    """The model with its head, inside of wrappers and PEFT."""
    inner = unwrapped(model)
    while isinstance(inner, PeftModel):
        inner = unwrapped(inner.get_base_model())
    return inner


def heads_of(model: nn.Module) -> list[nn.Module]:
    """Heads on top of a model: its output embeddings, or what stands beside the base model of a classifier.

    Where a model has neither, it is what PEFT knows by name: `score` or `classifier`.
    """
    inner: Any = task_model(model)
    try:
        output = inner.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        output = None
    if output is not None:
        return [output]
    prefix = getattr(inner, "base_model_prefix", "") or ""
    if prefix and hasattr(inner, prefix):
        return [child for name, child in inner.named_children() if name != prefix]
    return [head for name in SEQ_CLS_HEAD_NAMES if isinstance(head := getattr(inner, name, None), nn.Module)]


def _weights(module: nn.Module) -> Iterator[tuple[nn.Parameter, int]]:
    """Parameters of the pretrained model, each with how many weights it stands for; a tied one may come several times."""
    if isinstance(module, BaseTunerLayer):
        yield from _weights(module.get_base_layer())
        return
    if isinstance(module, AuxiliaryTrainingWrapper):
        yield from _weights(module.original_module)
        return
    for parameter in module.parameters(recurse=False):
        # bitsandbytes packs two 4-bit weights into a byte, and keeps the shape beside it: with the weight or, for the
        # tensors of experts, with the module that unpacks it.
        states: list[Any] = [getattr(each, "quant_state", None) for each in (parameter, *module.children())]
        shape = next((state.shape for state in states if hasattr(state, "shape")), parameter.shape)
        yield parameter, math.prod(shape)
    for name, child in module.named_children():
        if name != "pooler":
            yield from _weights(child)
