"""Triplets on a model for a while: afterwards the model is as it was, to the bit."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from peft import LoraConfig
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorank.adapter.triplet import TripletAdapter, TripletConv1D, TripletLinear
from lorank.errors import AdapterError
from lorank.models.base_dtype import train_in_fp32
from lorank.module_names import is_within, leaf_of, parent_of
from lorank.scoring.precision import at_least_fp32
from lorank.scoring.undisturbed import train_mode_passes
from lorank.targets import Target, named_parts

_NAME = "temporary"


@contextmanager
def temporary_triplets(
    model: nn.Module, targets: Sequence[Target], *, rank: int, scale: float, heads: Sequence[str] = ()
) -> Iterator[tuple[TripletAdapter, list[nn.Parameter]]]:
    """Put fresh triplets on layers, and copies in place of heads; nothing else trains while this is open.

    On leaving, also by an exception, the model has its own modules again, with their `requires_grad`, modes and running
    statistics. Its parameters are never changed. Gradient checkpointing of the reentrant form is off meanwhile: it cannot
    start from frozen embeddings.

    Args:
        model: the base model, without adapters.
        targets: layers that get triplets; P and Q are drawn from the random streams as they are.
        rank: of every layer, or all that its matrix can have.
        scale: factor of `P diag(λ) Q`.
        heads: full names of modules of which a copy trains whole, at least in fp32.

    Yields:
        The triplets, at least fp32, and all parameters that train.

    Raises:
        AdapterError: a head that is not there or has a target inside, or weights that are offloaded.

    """
    parts = named_parts(model)
    if missing := [name for name in heads if name not in parts or not name]:
        raise AdapterError(f"heads name {missing[0]!r}, which is no module of {type(model).__name__}")
    if inside := [target.name for target in targets if is_within(target.name, heads)]:
        raise AdapterError(
            f"{inside[0]!r} is part of a head, which is trained whole; give other targets, or other heads"
        )
    if away := [target.name for target in targets if parts[target.name].weight.device.type == "meta"]:
        raise AdapterError(f"the weights of {away[0]!r} are elsewhere (offloaded); load the model whole to train on it")
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    own: list[tuple[nn.Module, str, nn.Module]] = []

    def put(name: str, module: nn.Module) -> None:
        parent, leaf = parts[parent_of(name)], leaf_of(name)
        own.append((parent, leaf, parent._modules[leaf]))  # type: ignore[arg-type]
        parent._modules[leaf] = module

    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        layers, trained = [], list[nn.Parameter]()
        for target in targets:
            layers.append(_layer(parts[target.name], min(rank, target.max_rank), scale))
            put(target.name, layers[-1])
        adapter = TripletAdapter(tuple(target.name for target in targets), (), (), (), tuple(layers), _NAME)
        adapter.refresh()
        trained += adapter.factors("all")
        for name in heads:
            head = copy.deepcopy(parts[name])
            put(name, head)
            train_in_fp32(model, (name,))
            for parameter in head.parameters():
                parameter.grad = None
                parameter.requires_grad_(True)
                trained.append(parameter)
        with train_mode_passes(model):
            yield adapter, trained
    finally:
        for parent, leaf, module in reversed(own):
            parent._modules[leaf] = module
        for parameter, trains in flags:
            parameter.requires_grad_(trains)
        for module, training in modes:
            module.training = training


def _layer(base: nn.Module, rank: int, scale: float) -> TripletLinear:
    kind = TripletConv1D if isinstance(base, Conv1D) else TripletLinear
    config = LoraConfig(r=rank, lora_alpha=scale * rank)  # type: ignore[arg-type]
    layer = kind(base, _NAME, config=config, r=rank, lora_alpha=scale * rank)
    layer.scaling[_NAME] = scale
    wide = [nn.Parameter(at_least_fp32(factor.detach())) for factor in layer.factors_of(_NAME)]
    with torch.no_grad():
        layer.replace_factors(_NAME, *wide)
    return layer
