"""A saved adapter on its base model, as plain PEFT loads it."""

import math
import os
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn
from transformers import AutoModel, PreTrainedModel

from lorank.errors import AdapterError, one_line
from lorank.models.head_width import labels_by_shape
from lorank.models.loading import quiet_loading
from lorank.models.new_tokens import resize_embeddings
from lorank.models.pretrained import loadable, read_model_config
from lorank.models.task_model import experts_patterns_are_known
from lorank.models.weights import check_loaded, check_stored_size
from lorank.module_names import ends_with, in_base_model, is_adapter_tensor, parameter_of_tensor, parent_of

_GIVE = "give the base model that it was trained on"


def load_adapted(
    adapter: Path,
    base: str | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    dequantise: bool = False,
    trust_remote_code: bool = False,
) -> PeftModel:
    """Load an adapter on the base model that its config names, or on `base`, with a head as wide as the saved one.

    Its embeddings get the rows of tokens that were added for the adapter.

    With `dequantise`, a base model that is saved in 4 or 8 bit is turned into `dtype` first, and is no longer quantised.

    Raises:
        AdapterError: one of them cannot be loaded, or the base model has weights that are not its checkpoint's.

    """
    on = base or "the base model that its config names"
    with loadable(lambda why: AdapterError(f"{adapter} cannot be loaded on {on}: {why}; {_GIVE}")):
        name, family, config, revision = _base_of(adapter, base, trust_remote_code=trust_remote_code)
        width = labels_of(family, config, _saved_shapes(adapter), trust_remote_code=trust_remote_code)
        if width is not None:
            config.num_labels = width
        if os.path.isdir(name):
            check_stored_size(on_meta(family, config, trust_remote_code=trust_remote_code), name)
        with quiet_loading():
            model: Any
            model, loading = family.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                revision=revision,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                ignore_mismatched_sizes=width is not None,  # a head for another number of labels
            )
            check_loaded(model, loading, name, heads=list(saved_modules(adapter)), error=AdapterError)
            _resize(model, adapter)
            if dequantise:
                model = _dequantised(model, dtype if isinstance(dtype, torch.dtype) else None)
        with experts_patterns_are_known():
            return PeftModel.from_pretrained(model, str(adapter))


def head_width(adapter: Path, base: str | None = None, *, trust_remote_code: bool = False) -> int | None:
    """How many labels the saved head of a classifier has, on the base model that its config names, or on `base`.

    None where the adapter holds no head.

    Raises:
        AdapterError: the configs cannot be read, or heads that contradict each other.

    """
    with loadable(lambda why: AdapterError(f"the head of {adapter} cannot be read: {why}; give its base model")):
        _, family, config, _ = _base_of(adapter, base, trust_remote_code=trust_remote_code)
        return labels_of(family, config, _saved_shapes(adapter), trust_remote_code=trust_remote_code)


def model_class(task_type: str | None, config: Any, saved_class: str | None = None) -> Any:
    """The class of transformers that PEFT's task type stands for.

    Without a task type, or where its Auto class does not know such a model (a vision-language model that was trained as
    CAUSAL_LM, a speech model as SEQ_2_SEQ_LM), the class that the adapter was saved from, or else the checkpoint.

    Raises:
        AdapterError: an unknown task type.

    """
    named = (saved_class, *(config.architectures or ()))
    own = next(
        (
            candidate
            for name in named
            if (candidate := getattr(transformers, name or "", None)) and _is_model(candidate)
        ),
        None,
    )
    if task_type is None:
        return own or AutoModel
    known = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING
    if task_type not in known:
        raise AdapterError(f"task_type {task_type!r} is unknown; allowed: {', '.join(known)}")
    auto = getattr(peft, f"Auto{known[task_type].__name__}")._target_class
    if type(config) in auto._model_mapping or auto.__name__ in (getattr(config, "auto_map", None) or {}):
        return auto
    return own or auto


def class_of(adapter_config: Mapping[str, Any]) -> str | None:
    """The name of the class that an adapter without a task type was saved from, as PEFT records it."""
    return (adapter_config.get("auto_mapping") or {}).get("base_model_class")


def labels_of(
    family: Any, config: Any, saved: Mapping[str, Sequence[int]], *, trust_remote_code: bool = False
) -> int | None:
    """The number of labels that saved tensors are for (`labels_by_shape`), where a class of models has labels at all."""
    if "Classification" not in family.__name__ or not saved:
        return None

    def build(labels: int) -> nn.Module:
        changed = deepcopy(config)
        changed.num_labels = labels
        return on_meta(family, changed, trust_remote_code=trust_remote_code)

    return labels_by_shape(saved, build)


def on_meta(family: Any, config: Any, *, trust_remote_code: bool = False) -> Any:
    """A model with names and shapes alone, and without weights."""
    with torch.device("meta"), quiet_loading():
        if hasattr(family, "from_config"):  # an Auto class
            return family.from_config(config, trust_remote_code=trust_remote_code)
        return family._from_config(config)


def _base_of(adapter: Path, base: str | None, *, trust_remote_code: bool) -> tuple[str, Any, Any, str]:
    """Name, class, config and revision of the base model."""
    saved = PeftConfig.from_pretrained(str(adapter))
    name = base or saved.base_model_name_or_path
    revision = str(saved.revision or "main") if base in (None, saved.base_model_name_or_path) else "main"
    config = read_model_config(str(name), trust_remote_code=trust_remote_code, revision=revision)
    return name, model_class(saved.task_type, config, class_of(saved.to_dict())), config, revision


def _resize(model: Any, adapter: Path) -> None:
    """Give the embeddings the rows that an adapter trains, or has in a table that was trained whole.

    Raises:
        AdapterError: rows are missing in an output layer too, and the adapter has none for it.

    """
    tokens = getattr(PeftConfig.from_pretrained(str(adapter)), "trainable_token_indices", None) or ()
    needed = [max(rows) + 1 for rows in (tokens.values() if isinstance(tokens, Mapping) else [tokens]) if rows]
    try:
        table, output = model.get_input_embeddings(), model.get_output_embeddings()
    except (NotImplementedError, AttributeError):  # a model of images or sound
        return
    names = {id(module): name for name, module in model.named_modules()}
    saved, rows = _saved_shapes(adapter), getattr(table, "num_embeddings", 0)
    needed += saved.get(f"{names.get(id(table))}.weight", [])[:1]
    if not needed or max(needed) <= rows:
        return
    if output is not None and output.weight is not table.weight:
        own = names[id(output)]
        if saved.get(f"{own}.weight") is None and not any(
            ends_with(own, key) for key in tokens if isinstance(key, str)
        ):
            raise AdapterError(
                f"{adapter} has embeddings for {max(needed):,} tokens, its base model {rows:,}, and nothing says what its output "
                f"layer {own!r} has for the new ones; save the resized base model and give it as --base"
            )
    resize_embeddings(model, max(needed), from_mean=False)


def _is_model(candidate: Any) -> bool:
    return isinstance(candidate, type) and issubclass(candidate, PreTrainedModel)


def _saved_shapes(adapter: Path) -> dict[str, list[int]]:
    """Parameter of the model -> shape, of what was trained whole; of what was adapted, the shape of `B` says the rows."""
    with safe_open(adapter / SAFETENSORS_WEIGHTS_NAME, framework="numpy") as file:
        shapes = {parameter_of_tensor(key): file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    return {name: shape for name, shape in shapes.items() if name is not None}


def _dequantised(model: Any, dtype: torch.dtype | None) -> Any:
    """The model with plain weights in place of quantised ones.

    Raises:
        AdapterError: a quantisation that transformers cannot undo.

    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is None or getattr(quantiser.quantization_config, "dequantize", False):  # not, or while it was loaded
        return model
    try:
        packed = [conversion.source_patterns for conversion in quantiser.get_weight_conversions()]
        model = model.dequantize(dtype=dtype)
        # transformers would still pack the weights on saving.
        kept = [
            each for each in getattr(model, "_weight_conversions", None) or () if each.source_patterns not in packed
        ]
        model._weight_conversions = kept or None
    except (NotImplementedError, AttributeError, TypeError) as error:
        method = getattr(quantiser.quantization_config, "quant_method", type(quantiser).__name__)
        raise AdapterError(
            f"the base model is saved in {getattr(method, 'value', method)}, which transformers cannot turn back into plain "
            f"weights ({one_line(error, 100)}); give the model that it was made of as --base"
        ) from None
    for parameter in (
        model.parameters() if dtype is not None else ()
    ):  # what was not quantised was loaded as it is stored
        parameter.data = parameter.data.to(dtype)
    return model


def saved_modules(adapter: Path) -> dict[str, int]:
    """Names, in the base model, of the modules that the adapter brings whole, which may be new in the base -> parameters."""
    path = adapter / SAFETENSORS_WEIGHTS_NAME
    found: dict[str, int] = {}
    if path.is_file():
        with safe_open(path, framework="numpy") as file:
            for key in sorted(file.keys()):
                if not is_adapter_tensor(key):
                    name = in_base_model(parent_of(key))
                    found[name] = found.get(name, 0) + math.prod(file.get_slice(key).get_shape())
    return found
