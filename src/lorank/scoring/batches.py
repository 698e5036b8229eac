"""The model called with a batch, the loss that it returns, and how many targets that loss counts."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from peft import PeftModel
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lorank.errors import DataError, LorankError, one_line
from lorank.model_parts import unwrapped

Batch = Mapping[str, Any]
# The summed loss of all targets of a batch, and how many targets each example has, `(examples,)` on the CPU.
SummedLoss = Callable[[nn.Module, Batch], tuple[torch.Tensor, torch.Tensor]]

IGNORED = -100  # the label that transformers' losses leave out
# Of the causal language models those whose labels are to be shifted by whoever makes them.
_UNSHIFTED = {
    *("XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel", "ProphetNetForCausalLM", "TrOCRForCausalLM"),
    *(f"{name}ForCausalLM" for name in ("Bart", "MBart", "Marian", "Pegasus", "PLBart", "Mvp", "Blenderbot")),
    *("BlenderbotSmallForCausalLM", "BigBirdPegasusForCausalLM", "Speech2Text2ForCausalLM", "XLMProphetNetForCausalLM"),
}
_CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) - _UNSHIFTED


def call(model: nn.Module, batch: Batch) -> Any:
    """What the model returns for a batch, called with keyword arguments as Trainer does.

    Raises:
        DataError: the model does not take this batch; says which keys are missing or unknown, or what the model said.

    """
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a batch is {type(batch).__name__}; give the model's arguments by name, {{'input_ids': ..., 'labels': ...}}, or "
            "loss=, a function that calls the model itself (see lorank.score)"
        )
    try:
        return model(**{key: value for key, value in batch.items() if key != "num_items_in_batch"})
    except (LorankError, torch.OutOfMemoryError):
        raise
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        name = type(model).__name__
        takes = inspect.signature(model.forward).parameters.values()
        named = [one.name for one in takes if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        open_ended = any(one.kind == one.VAR_KEYWORD for one in takes)
        unknown = [key for key in batch if key not in named and not open_ended and key != "num_items_in_batch"]
        fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        needed = [one.name for one in takes if one.default is one.empty and one.kind not in fixed]
        missing = [key for key in needed if key not in batch]
        if isinstance(error, TypeError) and (unknown or missing):
            wrong = [f"needs {', '.join(missing)}"] if missing else []
            wrong += [f"does not take {', '.join(unknown)}"] if unknown else []
            raise DataError(
                f"{name}.forward {' and '.join(wrong)}; calibration batches have {', '.join(batch)}. Give batches of the "
                "arguments that it takes, or loss=, a function that calls the model itself (see lorank.score)"
            ) from error
        shapes = (
            f"{key} {str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
            for key, value in batch.items()
            if isinstance(value, torch.Tensor)
        )
        raise DataError(
            f"{name} fails on a calibration batch ({', '.join(shapes)}): {type(error).__name__}: {one_line(error)}; give "
            "batches as the model is trained on"
        ) from error


def count_targets(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """How many targets of each example transformers' mean loss counts, `(examples,)` on the CPU.

    One for a label of a whole example, or for one vector of numbers; for labels of tokens those that are not -100, of which
    a causal language model never predicts the first.
    """
    if labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.long)
    counted = (labels != IGNORED).reshape(len(labels), -1)
    if labels.ndim > 1 and shifts_labels(model):
        counted = counted[:, 1:]
    return counted.sum(1).cpu()


def shifts_labels(model: nn.Module) -> bool:
    """Whether the loss of this model shifts labels of tokens: what stands at position t is predicted at t - 1."""
    name, config = task_class(model), getattr(model, "config", None)
    # Whatever writes after a prompt, of text or of images, and has no decoder apart.
    writes = name in _CAUSAL or name.endswith(("ForCausalLM", "ForConditionalGeneration"))
    return writes and name not in _UNSHIFTED and not getattr(config, "is_encoder_decoder", False)


def task_class(model: nn.Module) -> str:
    """Name of the transformers class that computes the loss, inside of wrappers and of PEFT's model."""
    inner = unwrapped(model)
    return type(inner.get_base_model() if isinstance(inner, PeftModel) else inner).__name__


def loss_in(outputs: Any) -> torch.Tensor | None:
    """The loss among what a model returned: attribute or key `loss`, or the first of a tuple if it is a scalar; else None."""
    if isinstance(outputs, Mapping):
        return outputs.get("loss")
    if isinstance(outputs, tuple):
        first = outputs[0] if outputs else None
        return first if isinstance(first, torch.Tensor) and first.ndim == 0 else None
    return getattr(outputs, "loss", None)


def summed_loss(model: nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the losses of all targets of a transformers model, from its mean loss; and the targets of each example.

    Raises:
        DataError: no labels, or the model returns no loss for them.

    """
    if (labels := batch.get("labels")) is None:
        raise DataError(
            f"this score needs a loss, but calibration batches have no labels (keys: {', '.join(batch)}); add `labels`, give "
            "loss= for a model that takes others, or use estimator='gram' or method='magnitude' or 'eva', which need none"
        )
    if not isinstance(labels, torch.Tensor) or not labels.ndim:
        what = "a single number" if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise DataError(
            f"labels of a calibration batch are {what}, of which the targets of each example cannot be counted; give a tensor "
            "with one row for each example, or loss=, see lorank.score"
        )
    if not labels.is_floating_point():  # int32 labels, as NumPy makes them, are refused by PyTorch's losses
        labels = labels.long()
    counts = count_targets(model, labels)
    outputs = call(model, {**batch, "labels": labels})
    loss = loss_in(outputs)
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        what = "no loss" if loss is None else f"a loss of shape {tuple(getattr(loss, 'shape', ()))}, not one number,"
        returned = f"{type(outputs).__name__} of {', '.join(map(str, outputs))}" if isinstance(outputs, Mapping) else ""
        raise DataError(
            f"{type(model).__name__} returned {what} for these labels ({returned or type(outputs).__name__}); give loss=, see "
            "lorank.score"
        )
    total = int(counts.sum())
    if task_class(model).endswith("ForCTC"):
        return loss * _targets_in_ctc_mean(model, counts), counts
    # Without a target the mean is 0/0, and the sum is zero.
    return (loss * total if total else torch.nan_to_num(loss * 0)), counts


def _targets_in_ctc_mean(model: nn.Module, counts: torch.Tensor) -> int:
    """What connectionist temporal classification divided the sum of its losses by.

    Raises:
        DataError: each example by its own number of targets.

    """
    config: Any = model.config
    if config.ctc_loss_reduction == "sum":
        return 1
    if len(counts) > 1:
        raise DataError(
            f"{task_class(model)} with ctc_loss_reduction={config.ctc_loss_reduction!r} weighs the labels of short examples "
            "more; set model.config.ctc_loss_reduction = 'sum', or give calibration batches of one example each"
        )
    return int(counts.sum())


def on_device_of(model: nn.Module, batch: Batch) -> Batch:
    """The batch where the model's first weights are; where it is if they are all offloaded, accelerate then moves it."""
    devices = (p.device for p in model.parameters() if p.device.type != "meta")
    device = next(devices, None)
    return batch if device is None else send_to_device(batch, device)
