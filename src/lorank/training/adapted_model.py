"""A saved adapter on its base model, as plain PEFT loads it."""

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModel

from lorank.errors import AdapterError, one_line
from lorank.training.model import NOT_LOADABLE, quiet_loading
from lorank.training.weights import check_loaded


def load_adapted(
    adapter: Path, base: str | None = None, *, dtype: str | torch.dtype = "auto", trust_remote_code: bool = False
) -> PeftModel:
    """Load an adapter on the base model that its config names, or on `base`, with a head as wide as the saved one.

    Raises:
        AdapterError: one of them cannot be loaded, or the base model has weights that are not its checkpoint's.

    """
    try:
        task_type = PeftConfig.from_pretrained(str(adapter)).task_type
        name = base or PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        width = head_width(adapter) if task_type == peft.TaskType.SEQ_CLS else None
        if width is not None:
            config.num_labels = width
        with quiet_loading():
            model: Any
            model, loading = model_class(task_type, config).from_pretrained(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=width is not None,  # a head for another number of labels
            )
        check_loaded(model, loading, name, heads=saved_modules(adapter), error=AdapterError)
        return PeftModel.from_pretrained(model, str(adapter))
    except NOT_LOADABLE as error:
        reason = one_line(error)
        raise AdapterError(
            f"{adapter} cannot be loaded on {base or 'the base model that its config names'}: {reason}; give the base model "
            "that it was trained on"
        ) from None


def model_class(task_type: str | None, config: Any) -> Any:
    """The class of transformers that PEFT's task type stands for; without one, the class that the checkpoint was saved from.

    Raises:
        AdapterError: an unknown task type.

    """
    if task_type is None:
        return getattr(transformers, (config.architectures or ["AutoModel"])[0], AutoModel)
    known = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    if task_type not in known:
        raise AdapterError(f"task_type {task_type!r} is unknown; allowed: {', '.join(known)}")
    return getattr(peft, f"Auto{known[task_type].__name__}")._target_class


def head_width(adapter: Path) -> int | None:
    """How many labels the saved head has: the rows of its narrowest matrix; None without one."""
    with safe_open(adapter / "adapter_model.safetensors", framework="numpy") as file:
        heads = [key for key in file.keys() if ".lora_" not in key and key.endswith(".weight")]  # noqa: SIM118
        return min((file.get_slice(key).get_shape()[0] for key in heads), default=None)


def saved_modules(adapter: Path) -> list[str]:
    """Names, in the base model, of the modules that the adapter brings whole: they may be new in the base."""
    path = adapter / "adapter_model.safetensors"
    if not path.is_file():
        return []
    with safe_open(path, framework="numpy") as file:
        whole = [key for key in file.keys() if ".lora_" not in key]  # noqa: SIM118
    return sorted({key.removeprefix("base_model.model.").rpartition(".")[0] for key in whole})
