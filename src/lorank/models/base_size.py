"""How large the model is that adapters are put on: the one number that a budget in percent is a share of."""

import math
from collections.abc import Iterator
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from lorank.model_parts import heads_of, pretrained_part


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
        # tensors of experts, with the module that unpacks it; a weight that FSDP has sharded leaves it with its layer.
        keepers = (parameter, *([module] if parameter is getattr(module, "weight", None) else []), *module.children())
        states: list[Any] = [getattr(each, "quant_state", None) for each in keepers]
        shape = next((state.shape for state in states if hasattr(state, "shape")), parameter.shape)
        yield parameter, math.prod(shape)
    for name, child in module.named_children():
        if name != "pooler":
            yield from _weights(child)
