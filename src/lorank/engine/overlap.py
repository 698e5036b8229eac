"""Whether examples of a scoring set stand in the training set too, by their content."""

import hashlib
import re
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from lorank.errors import LorankWarning

_PLAIN = {int, float, str, bool, type(None)}
# What models read; labels and whatever else a row holds do not make another example.
_INPUTS = ("input_ids", "pixel_values", "input_features", "input_values", "inputs_embeds", "text", "messages", "prompt")


def shared_examples(scoring: Any, training: Any) -> int | None:
    """How many examples of `scoring` are in `training`, by the inputs that both have; None where they are not looked at.

    Looked at is what is there already: tables of `datasets`, lists, and data sets of tensors. What is made when it is asked for
    (a transform, a Dataset class that reads images) would cost a pass over the training data, and might draw.
    """
    if not all(_is_there(rows) and len(rows) for rows in (scoring, training)):
        return None
    first, other = scoring[0], training[0]
    columns: list[str] | None = None
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        both = [key for key in first if key in other]
        columns = [key for key in _INPUTS if key in both] or both
        if not columns:
            return None
    held = set(_digests(training, columns))
    return sum(digest in held for digest in _digests(scoring, columns))


def warn_of_overlap(scoring: Any, training: Any) -> None:
    """Say how many scoring examples are trained on too.

    Warns:
        LorankWarning: at least one is.

    """
    shared = shared_examples(scoring, training)
    if shared:
        warnings.warn(
            f"{shared:,} of {len(scoring):,} scoring examples are in the training data too: the model reads the same for them, "
            "so their loss is not held out. Remove duplicates; or, where longer texts were cut to the same beginning, raise "
            "max_length",
            LorankWarning,
            stacklevel=3,
        )


def _is_there(rows: Any) -> bool:
    if hasattr(rows, "select_columns") and hasattr(rows, "__len__"):
        return (rows.format or {}).get("type") != "custom"
    return isinstance(rows, (list, tuple, TensorDataset))


def content_sum(rows: Any) -> str:
    """A sum over everything that rows hold, in their order; their number alone where they are made when they are asked for."""
    if not _is_there(rows):
        return f"{len(rows)} examples"
    first = rows[0]
    total = hashlib.blake2b(digest_size=16)
    for digest in _digests(rows, list(first) if isinstance(first, Mapping) else None):
        total.update(digest)
    return total.hexdigest()


def _digests(rows: Any, columns: list[str] | None) -> Iterator[bytes]:
    if columns is not None and hasattr(rows, "select_columns"):  # datasets: whole batches are read at once
        rows = rows.select_columns(columns)
        for batch in rows.iter(1000):
            for values in zip(*(batch[name] for name in columns), strict=True):
                yield _digest(values)
        return
    for number in range(len(rows)):
        row = rows[number]
        yield _digest(tuple(row[name] for name in columns) if columns is not None else row)


def _digest(values: Any) -> bytes:
    return hashlib.blake2b(repr(values_in(values)).encode(), digest_size=16).digest()


def values_in(data: Any) -> Any:
    """Numbers and strings in place of tensors and arrays, in lists and mappings alike."""
    if isinstance(data, torch.Tensor):
        return data.detach().cpu().tolist()
    if isinstance(data, np.ndarray):
        return data.tolist()
    if isinstance(data, Mapping):
        return {str(key): values_in(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        # Token ids: asked for all at once, which is what a large training set takes its time for.
        return list(data) if set(map(type, data)) <= _PLAIN else [values_in(value) for value in data]
    if isinstance(data, (str, int, float, bool, type(None))):
        return data
    if callable(getattr(data, "tobytes", None)):  # an image
        return hashlib.blake2b(data.tobytes(), digest_size=16).hexdigest()
    return re.sub(r" at 0x[0-9a-f]+", "", repr(data))  # an address is another in every process
