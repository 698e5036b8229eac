"""Whether texts, as the tokenizer gives them, are what the model can read: known before any weights are loaded."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from datasets import Dataset
from peft import TaskType
from torch import nn
from transformers import PreTrainedTokenizerBase

from lorank.errors import LorankWarning, RecipeError
from lorank.findings import Findings
from lorank.models.loading import config_of
from lorank.models.padding_token import pad_id_of, takes_mask
from lorank.models.pretrained import Pretrained
from lorank.tasks.data import TaskData
from lorank.tasks.encoding import tokenize
from lorank.tasks.section import DataSection

# Part, number and tokens of each example, those that are taught too.
Encoded = Iterator[tuple[str, int, Sequence[int]]]


def check_tokens(
    data: TaskData,
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    task_type: TaskType,
    base: Pretrained,
    model: Any,
) -> None:
    """Check tokens against the model; all texts are tokenized only where the answer depends on them.

    Args:
        data: training and test part.
        tokenizer: of `load_tokenizer`.
        section: where the data come from.
        task_type: of `task_type_of`.
        base: which model.
        model: of `load_without_weights`.

    Raises:
        RecipeError: tokens without an embedding, texts without tokens, or end tokens of which a head needs the same number
            in every text. Several findings are raised as one.

    Warns:
        LorankWarning: the head pads with another token than the model's config says, or cannot be told of padding.

    """
    findings = Findings()
    rows = embeddings_of(model)
    parts = data.parts
    encode = partial(_encoded, parts, tokenizer, section, task_type)
    with findings.check():
        if rows is not None:
            _check_padding(base.name, tokenizer, rows)
    with findings.check():
        # Numbers of tokens may have gaps, so that their count alone does not tell; those at the ends may be no tokens of it.
        first = {part: rows.select([0]) for part, rows in list(parts.items())[:1]}
        ids = [one for _, _, ids in _encoded(first, tokenizer, section, task_type) for one in ids]
        if rows is not None and max(len(tokenizer) - 1, *tokenizer.get_vocab().values(), *ids) >= rows:
            _check_vocabulary(base.name, encode, tokenizer, rows)
    with findings.check():
        if not section.writes:
            _check_empty(base.name, parts, tokenizer)
    with findings.check():
        if task_type == TaskType.SEQ_CLS and _head_reads(model, "eos_token_id"):
            _check_ends(base.name, encode, tokenizer, model.config.eos_token_id)
    findings.raise_all()
    _warn_of_padding(base, tokenizer, model)


def embeddings_of(model: Any) -> int | None:
    """How many tokens the model has an input embedding for; None where it has no such table (CANINE hashes characters)."""
    try:
        table = model.get_input_embeddings()
    except (NotImplementedError, AttributeError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _check_padding(name: str, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    if not 0 <= int(tokenizer.pad_token_id) < rows:
        raise RecipeError(
            f"model: the tokenizer of {name!r} pads with {tokenizer.pad_token!r}, token {tokenizer.pad_token_id}, but "
            f"the model has embeddings for {rows:,} tokens: it was added without model.resize_token_embeddings; resize and save "
            "the model, or give the tokenizer a padding token that the model knows"
        )


def _check_vocabulary(name: str, encode: Callable[[], Encoded], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    for part, row, ids in encode():
        if (largest := max(ids, default=0)) >= rows:
            token = tokenizer.convert_ids_to_tokens(largest)
            raise RecipeError(
                f"model: {part} example {row} has token {token!r}, number {largest}, but {name!r} has embeddings for "
                f"{rows:,} tokens; give the tokenizer that belongs to the model, or resize the model's embeddings and save it"
            )


def _check_empty(name: str, parts: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase) -> None:
    """A text without tokens is no input; where the tokenizer adds none of its own, an empty text is one."""
    if tokenizer.num_special_tokens_to_add("text_2" in parts["train"].column_names):
        return
    for part, rows in parts.items():
        columns = [rows[name] for name in ("text_1", "text_2") if name in rows.column_names]
        for row, texts in enumerate(zip(*columns, strict=True)):
            if not any(text.strip() for text in texts) and not any(tokenizer(list(texts))["input_ids"]):
                raise RecipeError(
                    f"data.text: {part} example {row} is {texts[0]!r}, in which the tokenizer of {name!r} finds no "
                    "token; fill it in, or leave the example out"
                )


def _check_ends(name: str, encode: Callable[[], Encoded], tokenizer: PreTrainedTokenizerBase, end: int | None) -> None:
    """Heads that read a text at its last end token need the same number of them in every text of a batch."""
    named = f"{name!r} reads a text at its end token ({tokenizer.convert_ids_to_tokens(end)!r})" if end else ""
    if end is None:
        raise RecipeError(f"model: the config of {name!r} names no eos_token_id, at which its head reads a text")
    if tokenizer.pad_token_id == end:
        raise RecipeError(
            f"model: {named}, and its tokenizer pads with the same token; give it a padding token of its own"
        )
    wanted: int | None = None
    for part, row, ids in encode():
        count = list(ids).count(end)
        wanted = count if wanted is None else wanted
        if count == 0 or count != wanted:
            raise RecipeError(
                f"model: {named}, but {part} example {row} has {count} of them where "
                f"{'one is needed' if count == 0 else f'others have {wanted}'}; take them out of the texts, or use a tokenizer "
                "that adds one to each"
            )


def _encoded(
    parts: Mapping[str, Dataset], tokenizer: PreTrainedTokenizerBase, section: DataSection, task_type: TaskType
) -> Encoded:
    for part, rows in parts.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LorankWarning)  # what is cut is said when it is trained on
            encoded = tokenize(rows, tokenizer, section, task_type)
        taught = encoded["labels"] if section.writes else [()] * len(encoded)
        for row, (ids, labels) in enumerate(zip(encoded["input_ids"], taught, strict=True)):
            yield part, row, [*ids, *labels]


def _head_reads(model: nn.Module, key: str) -> bool:
    """Whether the forward pass looks at a token id of the config. Nothing that a model says of itself tells, its code does."""
    code = getattr(inspect.unwrap(type(model).forward), "__code__", None)
    return code is not None and key in code.co_names


def _warn_of_padding(base: Pretrained, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    config = config_of(base)
    named, used = pad_id_of(config), tokenizer.pad_token_id
    if named not in (None, used) and _head_reads(model, "pad_token_id"):
        warnings.warn(
            f"model: the config of {base.name!r} says pad_token_id {named}, its tokenizer pads with {used}; {used} is trained "
            f"with, so set model.config.pad_token_id = {used} where the adapter is used",
            LorankWarning,
            stacklevel=3,
        )
    if not takes_mask(config):
        warnings.warn(
            f"model: {config.model_type} has no attention mask, so what it says of a text depends on how far its batch is padded",
            LorankWarning,
            stacklevel=3,
        )
