"""The base model with its task head, and which of its modules are trained beside the adapters."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import TaskType
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.quantizers.base import get_keys_to_not_convert

from lorank.errors import RecipeError, shown
from lorank.models.base_dtype import DTYPES, dtype_of_checkpoint, train_in_fp32
from lorank.models.classifier_dropout import set_classifier_dropout
from lorank.models.families import trained_families
from lorank.models.new_tokens import add_new_tokens, resize_embeddings, rows_of_new_tokens
from lorank.models.padding_token import set_pad_id, set_padding
from lorank.models.pretrained import Pretrained, loadable, read_model_config, read_tokenizer
from lorank.models.quantization import keep_gradients, quantization_config
from lorank.models.task_model import TaskModel
from lorank.models.trained_whole import check_not_quantised, trained_whole
from lorank.models.weights import check_headers, check_loaded, check_stored_size
from lorank.module_names import is_within, parent_of
from lorank.processes import processes


def task_type_of(base: Pretrained, *, writes: bool) -> TaskType:
    """PEFT's word for what a model does: classify, or write a text, as encoder-decoder or decoder.

    Raises:
        RecipeError: there is no config under that name.

    """
    if not writes:
        return TaskType.SEQ_CLS
    decides = _is_encoder_decoder(base.name, base.trust_remote_code, base.revision)
    return TaskType.SEQ_2_SEQ_LM if decides else TaskType.CAUSAL_LM


@lru_cache
def _is_encoder_decoder(name: str, trust_remote_code: bool, revision: str | None) -> bool:
    return bool(load_config(name, trust_remote_code=trust_remote_code, revision=revision).is_encoder_decoder)


def load_config(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedConfig:
    """Config of a model.

    Raises:
        RecipeError: there is none under that name, no such revision, or one that no model can be built from.

    """
    with _loadable(name):
        return read_model_config(name, trust_remote_code=trust_remote_code, revision=revision)


def config_of(base: Pretrained) -> PreTrainedConfig:
    """Config of a base model.

    Raises:
        RecipeError: as `load_config`, or a revision of a folder.

    """
    if base.revision is not None and Path(base.name).is_dir():
        raise RecipeError(f"model.revision: is of a model on the hub, {base.name!r} is a folder; leave it out")
    return load_config(base.name, trust_remote_code=base.trust_remote_code, revision=base.revision)


_CALLED = {
    None: "model",
    TaskType.SEQ_CLS: "classifier",
    TaskType.SEQ_2_SEQ_LM: "sequence-to-sequence",
    TaskType.CAUSAL_LM: "causal",
}
_FAMILIES = {
    TaskType.SEQ_CLS: AutoModelForSequenceClassification,
    TaskType.SEQ_2_SEQ_LM: AutoModelForSeq2SeqLM,
    TaskType.CAUSAL_LM: AutoModelForCausalLM,
}


def load_tokenizer(base: Pretrained) -> PreTrainedTokenizerBase:
    """Tokenizer of the base model.

    Raises:
        RecipeError: there is none under that name, it has no token to pad with, or has one of `new_tokens` already.

    """
    config = config_of(base)  # the tokenizer reads it, too, and checks nothing of it
    with _loadable(base.name):
        tokenizer = read_tokenizer(
            base.name,
            lambda why: RecipeError(f"model: the tokenizer of {shown(base.name, 300)} is refused: {why}"),
            trust_remote_code=base.trust_remote_code,
            revision=base.revision,
        )
        set_padding(tokenizer, config, base.name)
        add_new_tokens(tokenizer, base.new_tokens, base.name)
    return tokenizer


def load_task_model(base: Pretrained, task_type: TaskType, label_names: Sequence[str]) -> TaskModel:
    """Load the base model in its dtype: with a head on top (one output for regression), or, for tasks that write, as it is.

    The head is new, unless the checkpoint has one of the same shape, as `from_pretrained` does it; it is trained whole, in fp32.
    Any other weight is the checkpoint's, quantised where that is asked for. Model and tokenizer pad with the same token.

    Args:
        base: which model.
        task_type: of `task_type_of`.
        label_names: of a classifier's classes; none for regression and for tasks that write.

    Raises:
        RecipeError: the model cannot be loaded, or has weights that are not its checkpoint's.

    """
    config = _task_config(base, task_type, label_names)
    dtype = DTYPES[base.dtype or dtype_of_checkpoint(config)]
    options: dict[str, Any] = {} if base.attention is None else {"attn_implementation": base.attention}
    with _loadable(base.name):
        if base.quantization is not None:
            options["quantization_config"] = quantization_config(base, dtype, _never_quantised(base, task_type))
            options["device_map"] = {"": processes().device}  # quantised weights are not moved afterwards
        with quiet_loading():
            model, loading = _FAMILIES[task_type].from_pretrained(
                base.name,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head for another number of labels
                trust_remote_code=base.trust_remote_code,
                revision=base.revision or "main",
                **options,
            )
    keep_gradients(model)
    tokenizer = load_tokenizer(base)
    set_pad_id(model, int(tokenizer.pad_token_id))
    heads = head_modules(model, loading["missing_keys"]) if task_type == TaskType.SEQ_CLS else ()
    beside = head_modules(model) if task_type == TaskType.SEQ_CLS else ()
    check_loaded(model, loading, base.name, heads=beside)
    if base.new_tokens:
        with quiet_loading():
            resize_embeddings(model, len(tokenizer), from_mean=True)
    train_in_fp32(model, heads)
    whole = trained_whole(model, base.modules_to_save, heads)
    check_not_quantised(model, whole)
    rows = rows_of_new_tokens(model, tokenizer, base.new_tokens, whole)
    return TaskModel(model, heads, task_type, base.revision, whole, rows)


def _never_quantised(base: Pretrained, task_type: TaskType) -> tuple[str, ...]:
    """Modules that may be trained whole, and what transformers leaves out by itself where there are any."""
    if task_type != TaskType.SEQ_CLS and not base.modules_to_save:
        return ()
    model: Any = without_weights(base, task_type)
    whole = trained_whole(model, base.modules_to_save).names
    if task_type != TaskType.SEQ_CLS:
        return (*get_keys_to_not_convert(model), *whole)
    poolers = [name for name, _ in model.named_modules() if name.endswith("pooler")]
    return (*head_modules(model), *poolers, *whole)


def on_own_device(model: Any) -> Any:
    """The model on the device of this process; one that is quantised was loaded there."""
    return model if getattr(model, "is_quantized", False) else model.to(processes().device)


def check_classifier_dropout(base: Pretrained) -> None:
    """Refuse a dropout of the classifier that the architecture has no field for, from the config alone.

    Raises:
        RecipeError: it has none.

    """
    if base.classifier_dropout is not None:
        _task_config(base, TaskType.SEQ_CLS, ())


def without_weights(base: Pretrained, task_type: TaskType) -> nn.Module:
    """`load_without_weights` of a base model, with embeddings for its new tokens.

    Raises:
        RecipeError: as there, or an attention that transformers or the model does not have.

    """
    model = load_without_weights(
        base.name,
        trust_remote_code=base.trust_remote_code,
        task_type=task_type,
        revision=base.revision,
        attention=base.attention,
    )
    with _loadable(base.name):
        check_headers(base.name)
    if base.new_tokens:
        resize_embeddings(model, len(load_tokenizer(base)), from_mean=False)
    return model


def load_without_weights(
    name: str,
    *,
    trust_remote_code: bool = False,
    task_type: TaskType | None = None,
    revision: str | None = None,
    attention: str | None = None,
) -> nn.Module:
    """Build a model from its config alone, on the meta device: names and shapes, no weights, no download of them.

    The class is that of `task_type`, as `load_task_model` picks it. Without one it is the class that the architecture is
    usually trained as, see `trained_families`.

    Raises:
        RecipeError: there is no config under that name, or no class for it.

    """
    config = load_config(name, trust_remote_code=trust_remote_code, revision=revision)
    options = {} if attention is None else {"attn_implementation": attention}
    own_code = getattr(config, "auto_map", None) or {} if trust_remote_code else {}
    for family in trained_families(config) if task_type is None else (_FAMILIES[task_type],):
        if type(config) in family._model_mapping or family.__name__ in own_code:
            with _loadable(name):
                with torch.device("meta"), quiet_loading():
                    model = family.from_config(config, trust_remote_code=trust_remote_code, **options)
                check_stored_size(model, name)
                return model
    raise _not_loadable(name, f"{config.model_type!r} has no {_CALLED[task_type]} class")


def head_modules(model: nn.Module, missing_keys: Sequence[str] = ()) -> tuple[str, ...]:
    """Name the modules beside the base model that have parameters, and those with weights the checkpoint lacks."""
    prefix = getattr(model, "base_model_prefix", "")
    if not hasattr(model, prefix):
        return ()  # a bare base model
    heads = [name for name, child in model.named_children() if name != prefix and any(True for _ in child.parameters())]
    for key in sorted(missing_keys):
        module = parent_of(key)
        if module and not is_within(module, heads):
            heads.append(module)
    return tuple(heads)


def _task_config(base: Pretrained, task_type: TaskType, label_names: Sequence[str]) -> PreTrainedConfig:
    config = config_of(base)
    if task_type != TaskType.SEQ_CLS:
        pass  # its head is the language model's own
    elif not label_names:
        config.num_labels, config.problem_type = 1, "regression"
    else:
        config.num_labels, config.problem_type = len(label_names), "single_label_classification"
        config.id2label = dict(enumerate(label_names))
        config.label2id = {name: number for number, name in enumerate(label_names)}
    if base.dropout is not None:
        for key, value in config.to_dict().items():
            if key.endswith(("dropout", "dropout_prob", "pdrop")) and isinstance(value, (int, float)):
                setattr(config, key, base.dropout)
    if base.classifier_dropout is not None:
        set_classifier_dropout(config, base.classifier_dropout, base.name, trust_remote_code=base.trust_remote_code)
    return config


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No bar where there is no terminal, and no warnings of transformers: that the new head is new, for one."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _loadable(name: str) -> AbstractContextManager[None]:
    return loadable(partial(_not_loadable, name))


def _not_loadable(name: str, reason: str) -> RecipeError:
    return RecipeError(
        f"model: {shown(name, 300)} cannot be loaded: {reason}; give a hub name or a folder with config and weights"
    )
