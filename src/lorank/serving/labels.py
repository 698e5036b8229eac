"""Names of a classifier's labels: from the file beside its adapter into the config of the merged model."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorank.errors import AdapterError, LorankWarning
from lorank.models.label_names import LABEL_NAMES


def name_labels(model: Any, adapter: Path, names: Sequence[str], *, own_head: bool) -> None:
    """Give the config of a classifier the names of its labels.

    Without names the config keeps what it has: the base model's names where it has as many labels, else `LABEL_0`, ...

    Args:
        model: with the adapter's head.
        adapter: its folder.
        names: of `read_label_names`; empty where they are not known.
        own_head: whether the adapter brings the head, so that the base model's names need not be those of its rows.

    Raises:
        AdapterError: not one name for each output of the head.

    Warns:
        LorankWarning: the head is the adapter's own, and nothing says what its labels are called.

    """
    config, width = model.config, model.config.num_labels
    if names:
        if len(names) != width:
            raise AdapterError(
                f"{adapter / LABEL_NAMES} has {len(names)} names, and the head {width} outputs; put it right or take it away"
            )
        config.id2label = dict(enumerate(names))
        config.label2id = {name: number for number, name in enumerate(names)}
        config.problem_type = config.problem_type or "single_label_classification"
    elif own_head and width > 1:
        first = ", ".join(repr(config.id2label[number]) for number in range(min(width, 3)))
        first += ", ..." if width > 3 else ""
        warnings.warn(
            f"{adapter} has no {LABEL_NAMES}, so the labels of the merged model are called {first}; "
            "if that is wrong, put a JSON list of the names there and merge again",
            LorankWarning,
            stacklevel=3,
        )
