"""A base model on the meta device: what its files do not say is looked up there. transformers and PEFT are loaded for it."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from lorank.errors import AdapterError, one_line
from lorank.models.adapted_model import model_class, on_meta
from lorank.models.loading import NOT_LOADABLE


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
    try:
        labels = {} if num_labels is None else {"num_labels": num_labels}
        revision = revision or "main"
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision, **labels)
        return on_meta(model_class(task_type, config, saved_class), config, trust_remote_code=trust_remote_code)
    except (*NOT_LOADABLE, AttributeError, TypeError, AssertionError) as error:
        # Fields that a config lacks; torch asserts that a padding token has an embedding.
        raise AdapterError(
            f"the base model {name!r} cannot be read: {_reason(name, error)}; give its hub name or folder as --base"
        ) from None


def _reason(name: str, error: Exception) -> str:
    if not Path(name).exists() and (name.count("/") != 1 or name.startswith((".", "~")) or Path(name).parent.is_dir()):
        return f"no such folder (looked in {Path.cwd()})"
    reason = (one_line(error) or type(error).__name__).rstrip(".")
    return reason if Path(name).exists() else f"it is no folder in {Path.cwd()}, and as a hub name: {reason}"
