"""What a calibration batch says about itself: its examples, which tokens are real, and how many targets the loss counts."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lorank.errors import DataError

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


def examples_in(batch: Batch) -> int:
    """Number of examples: the first dimension of the batch's first tensor.

    Raises:
        DataError: not a mapping with a tensor in it.

    """
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a calibration batch is {type(batch).__name__}; give mappings of model inputs, as transformers' collators do"
        )
    first = next((value for value in batch.values() if isinstance(value, torch.Tensor) and value.ndim), None)
    if first is None:
        raise DataError(f"a calibration batch has no tensor (keys: {', '.join(batch) or 'none'}); give model inputs")
    return len(first)


def count_targets(model: nn.Module, labels: torch.Tensor) -> torch.Tensor:
    """How many targets of each example transformers' mean loss counts, `(examples,)` on the CPU.

    One for a label of a whole example, or for one vector of numbers; for labels of tokens those that are not -100, of which
    a causal language model never predicts the first.
    """
    if labels.is_floating_point():
        return torch.ones(len(labels), dtype=torch.long)
    counted = (labels != IGNORED).reshape(len(labels), -1)
    name = type(getattr(model, "_orig_mod", model)).__name__  # inside of what torch.compile made
    causal = name in _CAUSAL or (name.endswith("ForCausalLM") and name not in _UNSHIFTED)
    if causal and labels.ndim > 1 and not getattr(model.config, "is_encoder_decoder", False):
        counted = counted[:, 1:]
    return counted.sum(1).cpu()


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
    counts = count_targets(model, labels)
    loss = loss_in(model(**batch))
    if loss is None:
        raise DataError(f"{type(model).__name__} returned no loss for these labels; give loss=, see lorank.score")
    total = int(counts.sum())
    # Without a target the mean is 0/0, and the sum is zero.
    return (loss * total if total else torch.nan_to_num(loss * 0)), counts


def with_distinct_lengths(model: nn.Module, batch: Batch) -> Batch:
    """The batch, where encoder and decoder inputs are of equal length with one masked token more or less for the encoder.

    So whose tokens a layer sees can be told from their number, and masks are applied to the right ones.
    """
    ids, other = batch.get("input_ids"), batch.get("decoder_input_ids", batch.get("labels"))
    if not getattr(getattr(model, "config", None), "is_encoder_decoder", False) or ids is None or other is None:
        return batch
    if other.ndim < 2 or ids.shape[1] != other.shape[1]:
        return batch
    mask = batch.get("attention_mask", torch.ones_like(ids))
    if not mask[:, -1].any():  # padded to a fixed length, perhaps to all the positions that there are
        return {**batch, "input_ids": ids[:, :-1], "attention_mask": mask[:, :-1]}
    if ids.shape[1] >= (getattr(model.config, "max_position_embeddings", None) or 10**9):
        raise DataError(
            f"encoder and decoder inputs of a calibration batch are equally long and fill all {ids.shape[1]} positions, so whose "
            "tokens a layer sees cannot be told; cut one of them shorter, or use estimator='fisher'"
        )
    filler = getattr(model.config, "pad_token_id", None) or 0
    return {**batch, "input_ids": pad(ids, (0, 1), value=filler), "attention_mask": pad(mask, (0, 1), value=0)}


def token_masks(model: nn.Module, batch: Batch) -> dict[int, torch.Tensor]:
    """Length of a sequence -> which of its tokens are real, `(examples, length)`; empty where nothing is masked."""
    masks = {}
    config: Any = getattr(model, "config", None)
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        masks[mask.shape[1]] = mask.bool()
    if getattr(config, "is_encoder_decoder", False):
        if mask is None and ids is not None:
            masks[ids.shape[1]] = torch.ones_like(ids, dtype=torch.bool)
        own, labels = batch.get("decoder_attention_mask"), batch.get("labels")
        if own is not None:
            masks[own.shape[1]] = own.bool()
        elif labels is not None and labels.ndim == 2:
            masks[labels.shape[1]] = labels != IGNORED
        elif (ids := batch.get("decoder_input_ids")) is not None:
            masks[ids.shape[1]] = ids != config.pad_token_id
            masks[ids.shape[1]][:, 0] = True  # where decoding starts, often with the padding token
    return masks
