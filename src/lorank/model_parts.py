"""The parts of a model: what is inside of wrappers and adapters, the pretrained part, and heads."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def unwrapped(model: "nn.Module") -> "nn.Module":
    """The model itself, inside of torch.compile, DataParallel, DistributedDataParallel, FSDP or DeepSpeed's engine."""
    from accelerate.utils import extract_model_from_parallel

    # One wrapper may hold another, in either order.
    while (inner := extract_model_from_parallel(model, keep_torch_compile=False)) is not model:
        model = inner
    return model


def pretrained_part(model: "nn.Module") -> "nn.Module":
    """The base model inside of wrappers, adapters and a task head."""
    inner = task_model(model)
    return getattr(inner, getattr(inner, "base_model_prefix", "") or "", inner)


def task_model(model: "nn.Module") -> "nn.Module":
    """The model with its head, inside of wrappers and PEFT."""
    from peft import PeftModel

    inner = unwrapped(model)
    while isinstance(inner, PeftModel):
        inner = unwrapped(inner.get_base_model())
    return inner


def heads_of(model: "nn.Module") -> "list[nn.Module]":
    """Heads on top of a model: its output embeddings, or what stands beside the base model of a classifier.

    Where a model has neither, it is what PEFT knows by name: `score` or `classifier`.
    """
    from peft.utils.constants import SEQ_CLS_HEAD_NAMES
    from torch import nn

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
