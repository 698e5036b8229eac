"""A pretrained model by name: what has to be known to load it, and its config, checked before anything is built from it."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorank.errors import LorankError, one_line
from lorank.received_files import check_model_config, check_model_folder
from lorank.untrusted.tokenizer_files import FILES, check_tokenizer_folder

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Pretrained:
    """A base model that is not loaded yet.

    Attributes:
        name: hub name or folder.
        trust_remote_code: let the code that comes with a hub model run.
        dropout: inside of the model; None: as its config says.
        classifier_dropout: in front of the head of a classifier; None: as its config says.
        dtype: fp32, bf16 or fp16; None: as its config says, see `dtype_of_checkpoint`.
        quantization: 4bit or 8bit; None: as the checkpoint is.
        attention: transformers' `attn_implementation`; None: transformers' choice.
        revision: branch, tag or commit on the hub; None: the main branch.
        modules_to_save: names, or their ends, of modules that train whole beside the adapters.
        new_tokens: special tokens that its tokenizer lacks, whose rows of the embeddings train.

    """

    name: str
    trust_remote_code: bool = False
    dropout: float | None = None
    classifier_dropout: float | None = None
    dtype: str | None = None
    quantization: str | None = None
    attention: str | None = None
    revision: str | None = None
    modules_to_save: tuple[str, ...] | None = None
    new_tokens: tuple[str, ...] | None = None


@contextmanager
def loadable(refused: Callable[[str], LorankError]) -> Iterator[None]:
    """Turn whatever other packages raise in this block into an error of ours.

    transformers, PEFT, tokenizers and torch raise nearly every kind of error for names, files, configs and packages that are
    missing or damaged.

    Args:
        refused: what they said, in one line -> the error to raise.

    """
    try:
        with without_panics():
            yield
    except LorankError:
        raise
    except Exception as error:
        raise refused(reason_of(error)) from None


@contextmanager
def without_panics() -> Iterator[None]:
    """Make an error of a panic of the tokenizers package, which is no Exception.

    Raises:
        RuntimeError: there was one.

    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # a class that cannot be imported
            raise
        raise RuntimeError(one_line(error)) from None


def reason_of(error: Exception) -> str:
    """What another package said, with the kind of its error where the message alone says little."""
    said, tells = one_line(error), isinstance(error, OSError | ValueError | RuntimeError | ImportError | AssertionError)
    return said if tells and said else f"{type(error).__name__}: {said}".removesuffix(": ")


def read_model_config(
    name: str, *, trust_remote_code: bool, revision: str | None, **options: Any
) -> "PreTrainedConfig":
    """The config of a model, with values that a model can be built from.

    Args:
        name: hub name or folder.
        trust_remote_code: let the model's own code run.
        revision: of a hub name.
        **options: values of the config.

    Raises:
        ValueError: values that no model can have, or an index of weights that leads out of the folder.
        Exception: whatever transformers raises.

    """
    from transformers import AutoConfig, PreTrainedConfig

    if os.path.isdir(name):
        check_model_folder(Path(name))
    content, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
    check_model_config(content)
    if methods := [key for key in content if callable(getattr(PreTrainedConfig, key, None))]:
        raise ValueError(f"{methods[0]} in its config is no value that a config has")
    return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision or "main", **options)


def read_tokenizer(
    name: str, refused: Callable[[str], LorankError], *, trust_remote_code: bool = False, revision: str | None = None
) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model or beside an adapter, tried with limits before it is loaded.

    Args:
        name: hub name or folder.
        refused: which of its files has settings that no tokenizer has, or takes far too much -> the error to raise.
        trust_remote_code: let the tokenizer's own code run.
        revision: of a hub name.

    Raises:
        LorankError: of `refused`.
        Exception: whatever transformers raises.

    """
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_files

    folders = {Path(name)} if os.path.isdir(name) else set[Path]()
    if not folders:
        found = cached_files(
            name,
            list(FILES),
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        folders = {Path(file).parent for file in found or ()}
    for folder in sorted(folders):
        try:
            check_tokenizer_folder(folder)
        except ValueError as error:
            raise refused(str(error)) from None
    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, revision=revision or "main")
