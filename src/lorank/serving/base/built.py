"""A base model on the meta device: what its files do not say is looked up there. transformers and PEFT are loaded for it."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from lorank.errors import AdapterError, shown
from lorank.models.adapted_model import model_class, on_meta
from lorank.models.pretrained import loadable, read_model_config


def without_weights(
    name: str,
    task_type: str | None,
    *,
    saved_class: str | None = None,
    num_labels: int | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Any:
    """The base model of a task on the meta device: names and shapes, from its config; no weights are read.

    `saved_class` is the class that an adapter was saved from, where PEFT recorded it (`model_class`); `revision` is that of a
    hub name.

    Raises:
        AdapterError: no config that can be read, or an unknown task type.

    """
    with loadable(partial(_not_readable, name)):
        labels = {} if num_labels is None else {"num_labels": num_labels}
        config = read_model_config(name, trust_remote_code=trust_remote_code, revision=revision, **labels)
        return on_meta(model_class(task_type, config, saved_class), config, trust_remote_code=trust_remote_code)


def _not_readable(name: str, reason: str) -> AdapterError:
    return AdapterError(
        f"the base model {shown(name, 300)} cannot be read: {_where(name, reason)}; give its hub name or folder as --base"
    )


def _where(name: str, reason: str) -> str:
    if not os.path.exists(name) and (
        name.count("/") != 1 or name.startswith((".", "~")) or os.path.isdir(os.path.dirname(name) or ".")
    ):
        return f"no such folder (looked in {Path.cwd()})"
    reason = reason.rstrip(".")
    return reason if os.path.exists(name) else f"it is no folder in {Path.cwd()}, and as a hub name: {reason}"
