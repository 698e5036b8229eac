"""An adapter, or a whole model, as its files describe it: known before any weights are loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, TaskType
from transformers import PreTrainedConfig

from lorank.errors import AdapterError, RecipeError
from lorank.models.adapted_model import head_width
from lorank.models.families import is_classifier, kind_of
from lorank.models.label_names import label_names_in, read_label_names
from lorank.models.loading import config_of, load_task_model, load_tokenizer, on_own_device
from lorank.models.pretrained import Pretrained, loadable, read_tokenizer
from lorank.received_files import check_adapter_folder

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class SavedModel:
    """What is known of an adapter or a model before it is loaded.

    Attributes:
        name: as it was asked for.
        adapter: folder of the adapter; None of a whole model.
        base: what the adapter is put on, or the whole model.
        task_type: a classifier, an encoder-decoder or a decoder.
        label_names: of a classifier, where they are known.
        labels: outputs of a classifier's head, 1 of a regression; 0 of models that write.

    """

    name: str
    adapter: Path | None
    base: Pretrained
    task_type: TaskType
    label_names: tuple[str, ...]
    labels: int

    @property
    def writes(self) -> bool:
        """Whether it writes texts."""
        return self.task_type != TaskType.SEQ_CLS

    @property
    def chat_template(self) -> Path | None:
        """The chat template that an adapter was trained with, where it has one of its own."""
        path = None if self.adapter is None else self.adapter / "chat_template.jinja"
        return path if path is not None and path.is_file() else None

    def load(self, base: Pretrained, label_names: Sequence[str]) -> Any:
        """The model on the device of this process, in evaluation mode.

        Args:
            base: as it is loaded: dtype, quantisation, attention.
            label_names: of a classifier; none of a regression and of models that write.

        Raises:
            RecipeError: as `load_task_model`.
            AdapterError: the adapter does not fit the base model.

        """
        model: Any = load_task_model(base, self.task_type, label_names).model
        if self.adapter is not None:
            with loadable(self._does_not_fit):
                model = PeftModel.from_pretrained(model, str(self.adapter))
        return on_own_device(model).eval()

    def _does_not_fit(self, reason: str) -> AdapterError:
        return AdapterError(
            f"{self.adapter} cannot be loaded on {self.base.name}: {reason}; give the base model that it was trained on as --base"
        )


def read_adapter_config(adapter: Path) -> PeftConfig:
    """PEFT's config of an adapter.

    Raises:
        AdapterError: missing or damaged.

    """
    with loadable(lambda why: AdapterError(f"{adapter / ADAPTER_CONFIG} cannot be read ({why}); give a PEFT adapter")):
        return PeftConfig.from_pretrained(str(adapter))


def read_saved_model(name: str, base: Pretrained) -> SavedModel:
    """Read what an adapter's folder, a model's folder or a hub name says of itself.

    Args:
        name: a folder with an `adapter_config.json`, or a model.
        base: how it is loaded; of an adapter its `name` is the base model to take, or empty for the one that the adapter names.

    Raises:
        AdapterError: an adapter that cannot be read, or for another kind of task.
        RecipeError: a model that cannot be read or that has no head of its own, or a base for a whole model.

    """
    folder = Path(name)
    if not (folder / ADAPTER_CONFIG).is_file():
        return _whole_model(name, base)
    check_adapter_folder(folder)
    saved = read_adapter_config(folder)
    named = str(saved.base_model_name_or_path)
    if base.name in ("", named) and saved.revision and not Path(named).is_dir():
        base = replace(base, revision=str(saved.revision))
    base = replace(base, name=base.name or named)
    base = replace(base, new_tokens=_new_tokens(folder, base))
    kind = saved.task_type or _head_of(named, config_of(base))
    if kind not in (TaskType.SEQ_CLS, TaskType.CAUSAL_LM, TaskType.SEQ_2_SEQ_LM):
        raise AdapterError(
            f"{name} is an adapter for {kind}; those for {TaskType.SEQ_CLS.value}, {TaskType.CAUSAL_LM.value} and "
            f"{TaskType.SEQ_2_SEQ_LM.value} can be evaluated"
        )
    kind = TaskType(kind)
    if kind != TaskType.SEQ_CLS:
        return SavedModel(name, folder, base, kind, (), 0)
    names = read_label_names(folder)
    width = len(names) or head_width(folder, base.name, trust_remote_code=base.trust_remote_code)
    return SavedModel(name, folder, base, kind, names, width or int(config_of(base).num_labels))


def _new_tokens(folder: Path, base: Pretrained) -> tuple[str, ...] | None:
    """Tokens that the tokenizer beside an adapter has more than that of the base model.

    Raises:
        AdapterError: it numbers the tokens of the base model in another way.

    """
    if not (folder / "tokenizer_config.json").is_file():
        return None
    beside = f"{folder}: the tokenizer beside the adapter"
    with loadable(lambda why: AdapterError(f"{beside} cannot be read ({why})")):
        own = read_tokenizer(str(folder), lambda why: AdapterError(f"{beside} is refused: {why}")).get_vocab()
    tokenizer = load_tokenizer(base)
    known, count = tokenizer.get_vocab(), len(tokenizer)
    added = sorted((number, token) for token, number in own.items() if token not in known)
    if [number for number, _ in added] != list(range(count, count + len(added))):
        raise AdapterError(
            f"{folder}: the tokenizer beside the adapter numbers its {len(added)} new tokens in another way than behind those of "
            f"{base.name!r}; give the base model with that tokenizer as --base"
        )
    return tuple(token for _, token in added) or None


def _whole_model(name: str, base: Pretrained) -> SavedModel:
    if base.name:
        raise RecipeError(f"--base is for an adapter, and {name} has no {ADAPTER_CONFIG}; leave it out")
    base = replace(base, name=name)
    config = config_of(base)
    kind = _head_of(name, config)
    if kind != TaskType.SEQ_CLS:
        return SavedModel(name, None, base, kind, (), 0)
    return SavedModel(name, None, base, kind, label_names_in(config), int(config.num_labels))


def _head_of(name: str, config: PreTrainedConfig) -> TaskType:
    """What the head of a checkpoint does.

    Raises:
        RecipeError: it has none, or one for something else.

    """
    if is_classifier(config):
        return TaskType.SEQ_CLS
    kind = kind_of(config)
    if kind == "encoder":
        raise RecipeError(
            f"model: {name!r} ({config.model_type}) has no head that classifies or writes texts; give an adapter, or a model "
            "that was trained for a task"
        )
    return TaskType.CAUSAL_LM if kind == "decoder" else TaskType.SEQ_2_SEQ_LM
