"""Whether an adapter fits the model and the data that it is pruned or measured with; known before any weights are loaded."""

from collections.abc import Sequence
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME

from lorank.errors import AdapterError
from lorank.models.adapted_model import head_width
from lorank.models.label_names import read_label_names
from lorank.models.loading import task_type_of
from lorank.models.pretrained import Pretrained
from lorank.models.saved_model import read_adapter_config

_DOES = {"SEQ_CLS": "classifies texts", "CAUSAL_LM": "writes texts", "SEQ_2_SEQ_LM": "rewrites texts"}


def check_adapter_task(adapter: Path, base: Pretrained, task: str, *, writes: bool) -> None:
    """Refuse an adapter for another task than the recipe's data are for.

    Args:
        adapter: its folder.
        base: the recipe's model.
        task: `data.task` of the recipe.
        writes: whether the answer of that task is a text.

    Raises:
        AdapterError: names both tasks; or the adapter's config cannot be read.

    """
    own = read_adapter_config(adapter).task_type
    wanted = task_type_of(base, writes=writes)
    if own is not None and own != wanted:
        raise AdapterError(
            f"{adapter} is an adapter for {_said(own)}, but data.task {task} of the recipe on {base.name!r} is "
            f"for {_said(wanted)}; give the recipe that trained it as --data"
        )


def check_adapter_labels(adapter: Path, base: Pretrained, names: Sequence[str]) -> None:
    """Refuse a classifier's adapter whose head is for other labels than the data has (no names: one output, regression).

    Raises:
        AdapterError: another number of labels, or other names in `label_names.json`.

    """
    if not (adapter / SAFETENSORS_WEIGHTS_NAME).is_file():
        return  # PEFT says what is missing
    width, labels = head_width(adapter, base.name, trust_remote_code=base.trust_remote_code), len(names) or 1
    if width is not None and width != labels:
        raise AdapterError(
            f"{adapter} has a head for {width} labels, the data of the recipe have {labels}; give the recipe that trained it as "
            "--data"
        )
    own = read_label_names(adapter)
    if own and own != tuple(names):
        raise AdapterError(
            f"{adapter} was trained with the labels {_first(own)}, the data of the recipe have {_first(names)}; give the recipe "
            "that trained it as --data"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")


def _said(task_type: object) -> str:
    name = str(getattr(task_type, "value", task_type))
    return f"{name} (a model that {_DOES[name]})" if name in _DOES else name
