"""Names of a classifier's labels, in a file beside its adapter: PEFT's config has no place for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorank.artefact import read_json, write_json
from lorank.errors import AdapterError

LABEL_NAMES = "label_names.json"


def write_label_names(folder: Path, names: Sequence[str]) -> None:
    """Write a JSON list into an adapter's folder; without names (regression, texts) nothing."""
    if names:
        write_json(folder / LABEL_NAMES, list(names))


def read_label_names(folder: Path) -> tuple[str, ...]:
    """The names in an adapter's folder, in the order of the head's rows; () without the file.

    Raises:
        AdapterError: damaged, or not a list of different strings.

    """
    path = folder / LABEL_NAMES
    if not path.is_file():
        return ()
    try:
        names = read_json(path)
    except (ValueError, OSError, RecursionError) as error:
        raise AdapterError(f"{path}: damaged or not JSON ({error}); put it right or take it away") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) != len(names):
        raise AdapterError(f"{path} is not a JSON list of different strings; put it right or take it away")
    return tuple(names)


def label_names_of(model: Any) -> tuple[str, ...]:
    """The names in the config of a model that classifies; () where it does not, or where they are transformers' own."""
    config: Any = getattr(model, "config", None)
    if getattr(config, "problem_type", None) != "single_label_classification":
        return ()
    return label_names_in(config)


def label_names_in(config: Any) -> tuple[str, ...]:
    """The names of the classes in a config; () where they are transformers' own."""
    names = tuple(str(name) for _, name in sorted(config.id2label.items()))
    return () if all(name == f"LABEL_{k}" for k, name in enumerate(names)) else names
