"""The examples of a calibration batch: how many they are, some of them apart, and one of them without its padding."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lorank.errors import DataError
from lorank.scoring.batches import IGNORED, Batch

# Each of these has one row for each example, whatever else is in the batch.
_OF_EXAMPLES = ("input_ids", "inputs_embeds", "labels", "attention_mask", "decoder_input_ids")
_SEQUENCES = ("input_ids", "inputs_embeds", "input_values", "input_features")  # what an attention mask may be of
_ALONE = "give calibration batches of one example each"


def examples_in(batch: Batch) -> int:
    """Number of examples: the rows of `input_ids`, or of the next of `inputs_embeds`, `labels`, ..., or of the first tensor.

    Images and sounds need not have one row for each example: Qwen2-VL's `pixel_values` are the patches of all images.

    Raises:
        DataError: not a mapping with a tensor in it, a row that was not collated, or no example.

    """
    if not isinstance(batch, Mapping):
        raise DataError(
            f"a calibration batch is {type(batch).__name__}; give mappings of model inputs, as transformers' collators do"
        )
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor) and value.ndim}
    if not tensors:
        raise DataError(f"a calibration batch has no tensor (keys: {', '.join(batch) or 'none'}); give model inputs")
    if (ids := tensors.get("input_ids")) is not None and ids.ndim == 1:
        raise DataError(
            f"input_ids of a calibration batch have shape {tuple(ids.shape)}: one row of a data set; collate rows into batches "
            "(examples, tokens), for example by a DataLoader with transformers' DataCollatorWithPadding"
        )
    count = len(next((tensors[key] for key in _OF_EXAMPLES if key in tensors), next(iter(tensors.values()))))
    if not count:
        raise DataError("a calibration batch has no example (0 rows); leave it out")
    return count


def in_rows(model: nn.Module, batch: Batch, count: int) -> bool:
    """Whether row i of every tensor is of example i: not so where some examples have several images and others none."""
    tensors = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor) and value.ndim}
    for key, value in tensors.items():
        if key == "position_ids" and value.ndim == 3:
            continue
        placed = _placeholders(model, batch, key)
        if placed is None and len(value) not in (1, count) and not _shared(key, value, batch):
            return False
        # As many images as examples, with at least one in each example, are one for each.
        if placed is not None and not (len(value) == count and bool((placed > 0).all())):
            return False
    return True


def some_examples(model: nn.Module, batch: Batch, count: int, start: int, stop: int) -> Batch:
    """Examples `start` to `stop` of a batch of `count`, each with its own images and sounds.

    Where a tensor does not have one row for each example, its rows are assigned by the placeholders that stand for them in
    `input_ids`.

    Raises:
        DataError: it cannot be told which rows are of which example.

    """
    if (start, stop) == (0, count):
        return batch
    whole = in_rows(model, batch, count)
    part: dict[str, Any] = {}
    for key, value in batch.items():
        if key == "position_ids" and value.ndim == 3:  # of time, height and width
            part[key] = value[:, start:stop]
        elif not isinstance(value, torch.Tensor):
            listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
            part[key] = value[start:stop] if listed else value
        elif not value.ndim or _shared(key, value, batch) or (len(value) == 1 and (whole or key == "position_ids")):
            part[key] = value
        elif _placeholders(model, batch, key) is None or whole:
            if len(value) != count:
                raise DataError(f"{key} of a calibration batch has {len(value)} rows for {count} examples; {_ALONE}")
            part[key] = value[start:stop]
        elif len(own := value[slice(*_dealt(model, batch, key, start, stop))]):
            part[key] = own
    return part


def without_padding(model: nn.Module, batch: Batch) -> Batch:
    """A batch of one example without what the attention mask leaves out before and behind it, and the labels likewise."""
    part = dict(batch)
    translates = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))
    mask = part.get("attention_mask")
    if isinstance(mask, torch.Tensor) and mask.ndim == 2:
        length, real = mask.shape[1], torch.nonzero(mask[0])[:, 0]
        known = [key for key in _SEQUENCES if isinstance(part.get(key), torch.Tensor)]
        if len(real) and len(real) < length and any(_along(part[key], mask) for key in known):
            kept = slice(int(real[0]), int(real[-1]) + 1)
            for key, value in batch.items():
                if not isinstance(value, torch.Tensor) or (translates and _of_decoder(key)):
                    continue
                if key == "position_ids":
                    part[key] = value[..., kept]
                elif _along(value, mask) and (not value.is_floating_point() or key in (*_SEQUENCES, "attention_mask")):
                    part[key] = value[:, kept]
    labels = part.get("labels")
    if translates and isinstance(labels, torch.Tensor) and labels.ndim == 2 and not labels.is_floating_point():
        counted = torch.nonzero(labels[0] != IGNORED)[:, 0]
        length = labels.shape[1]
        if len(counted):
            for key, value in part.items():
                if isinstance(value, torch.Tensor) and _of_decoder(key) and value.shape[1:2] == (length,):
                    part[key] = value[:, : int(counted[-1]) + 1]
    return part


def _along(value: torch.Tensor, mask: torch.Tensor) -> bool:
    return value.shape[:2] == mask.shape


def _of_decoder(key: str) -> bool:
    return key == "labels" or key.startswith("decoder_")


def _shared(key: str, value: torch.Tensor, batch: Batch) -> bool:
    """Whether all examples share the tensor: positions in the sequence."""
    ids = batch.get("input_ids")
    return key == "cache_position" and isinstance(ids, torch.Tensor) and value.shape == ids.shape[1:]


def _placeholders(model: nn.Module, batch: Batch, key: str) -> torch.Tensor | None:
    """How many tokens of each example stand for rows of this tensor, `(examples,)`; None for one that is not placed in text."""
    ids, value = batch.get("input_ids"), batch[key]
    if not isinstance(ids, torch.Tensor) or key in _OF_EXAMPLES or key == "position_ids" or _along(value, ids):
        return None
    kind = "video" if "video" in key else "image" if key.startswith(("pixel_", "image_")) else "audio"
    if kind == "audio" and not key.startswith(("input_", "feature_", "audio_")):
        return None
    config = getattr(model, "config", None)
    tokens = (getattr(config, f"{kind}_token_{end}", None) for end in ("id", "index"))
    token = next((token for token in tokens if isinstance(token, int)), None)
    placed = None if token is None else (ids == token).sum(1)
    return placed if placed is not None and bool(placed.any()) else None


def _dealt(model: nn.Module, batch: Batch, key: str, start: int, stop: int) -> tuple[int, int]:
    """First and last row of examples `start` to `stop`, in proportion to their placeholders."""
    value, placed = batch[key], _placeholders(model, batch, key)
    assert placed is not None
    until = [int(placed[:example].sum()) for example in (start, stop)]
    total = int(placed.sum())
    if key.endswith("grid_thw"):  # one row for each image, which stands for its patches
        sizes = torch.cat([torch.zeros(1, dtype=torch.long), value.prod(1).cumsum(0).cpu()])
        found = [torch.nonzero(sizes * total == rows * int(sizes[-1]))[:, 0] for rows in until]
        if all(map(len, found)):
            return int(found[0][0]), int(found[1][0])
    # A fifth dimension may be an example's images, or the tiles of an image.
    elif all(rows * len(value) % total == 0 for rows in until) and (value.ndim < 5 or len(value) != len(placed)):
        return until[0] * len(value) // total, until[1] * len(value) // total
    raise DataError(
        f"which rows of {key} {tuple(value.shape)} are of which example of a calibration batch cannot be told; {_ALONE}"
    )
