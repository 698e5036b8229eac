"""Which tokens of a calibration batch are real, by the length of the sequence that they are in."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad

from lorank.scoring.batches import IGNORED, Batch


def with_distinct_lengths(model: nn.Module, batch: Batch) -> Batch | None:
    """The batch, where encoder and decoder inputs are of equal length with one masked token more or less for the encoder.

    So whose tokens a layer sees can be told from their number, and masks are applied to the right ones. None where both
    fill all positions that there are.
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
        return None
    filler = getattr(model.config, "pad_token_id", None) or 0
    return {**batch, "input_ids": pad(ids, (0, 1), value=filler), "attention_mask": pad(mask, (0, 1), value=0)}


def token_masks(model: nn.Module, batch: Batch) -> dict[int, torch.Tensor | None]:
    """Length of a sequence -> which of its tokens are real, `(examples, length)`; empty where all are.

    None for a length that encoder and decoder share with different masks.
    """
    masks: list[torch.Tensor] = []
    config: Any = getattr(model, "config", None)
    mask, ids = batch.get("attention_mask"), batch.get("input_ids")
    if isinstance(mask, torch.Tensor) and (mask.ndim == 2 or (ids is not None and mask.shape == ids.shape)):
        masks.append(mask.flatten(1).bool())  # of all the choices of an example
    if getattr(config, "is_encoder_decoder", False):
        if mask is None and ids is not None:
            masks.append(torch.ones_like(ids, dtype=torch.bool))
        own, labels = batch.get("decoder_attention_mask"), batch.get("labels")
        if own is not None:
            masks.append(own.bool())
        elif labels is not None and labels.ndim == 2:
            # Up to the last label: those in between without one are still read.
            masks.append((labels != IGNORED).flip(1).long().cummax(1).values.flip(1).bool())
        elif (ids := batch.get("decoder_input_ids")) is not None:
            masks.append(ids != config.pad_token_id)
            masks[-1][:, 0] = True  # where decoding starts, often with the padding token
    if all(bool(real.all()) for real in masks):
        return {}
    found: dict[int, torch.Tensor | None] = {}
    for real in masks:
        length = real.shape[1]
        found[length] = real if length not in found or _equal(found[length], real) else None
    return found


def _equal(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and torch.equal(one, other.to(one.device))
