"""Names of a classifier's labels: from the file beside its adapter into the config of the merged model."""

import json
import warnings
from pathlib import Path
from typing import Any

from lorank.errors import AdapterError, LorankWarning

LABEL_NAMES = "label_names.json"


def read_label_names(adapter: Path) -> list[str] | None:
    """The names in `label_names.json` of an adapter's folder, in the order of the head's rows; None without the file.

    Raises:
        AdapterError: damaged, or not a list of different strings.

    """
    path = adapter / LABEL_NAMES
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterError(f"{path}: damaged or not JSON ({error}); put it right or take it away") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise AdapterError(f"{path} is not a JSON list of different strings; put it right or take it away")
    return names


def name_labels(model: Any, adapter: Path, names: list[str] | None, *, own_head: bool) -> None:
    """Give the config of a classifier the names of its labels.

    Without names the config keeps what it has: the base model's names where it has as many labels, else `LABEL_0`, ...

    Args:
        model: with the adapter's head.
        adapter: its folder.
        names: of `read_label_names`.
        own_head: whether the adapter brings the head, so that the base model's names need not be those of its rows.

    Raises:
        AdapterError: not one name for each output of the head.

    Warns:
        LorankWarning: the head is the adapter's own, and nothing says what its labels are called.

    """
    config, width = model.config, model.config.num_labels
    if names is not None:
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
