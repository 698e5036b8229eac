"""Tokens and labels of the tasks chat, completion and text, made by TRL as its SFTTrainer makes them."""

import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lorank.artefact import read_plain_text
from lorank.errors import DataError, LorankWarning, RecipeError, one_line, shown
from lorank.models.loading import quiet_loading
from lorank.models.pretrained import without_panics
from lorank.processes import only_cpu
from lorank.tasks.data import TaskData
from lorank.tasks.evaluation_settings import CHECKPOINTING
from lorank.tasks.section import EVAL, SCORING, DataSection
from lorank.tasks.sft_rows import packed, streamed_examples
from lorank.tasks.text_data import IGNORED, end_of_text
from lorank.untrusted.chat_templates import check_chat_template

_STREAMED_AT_A_TIME = 256  # rows that TRL makes into tokens at once


def set_chat_template(tokenizer: PreTrainedTokenizerBase, section: DataSection) -> None:
    """Give the tokenizer the template of `data.chat_template`.

    Raises:
        RecipeError: the file cannot be read, or there is no template at all, or none that is named `default`.

    """
    if section.task != "chat":
        return
    if section.chat_template is not None:
        path = Path(section.chat_template)
        try:
            tokenizer.chat_template = read_plain_text(path)
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"data.chat_template: {path} cannot be read ({error}); give a Jinja file") from None
    if tokenizer.chat_template is None:
        raise RecipeError(
            "data.task chat: the tokenizer of this model has no chat template; give data.chat_template, a Jinja file, or a model "
            "that was trained to chat"
        )
    if isinstance(templates := tokenizer.chat_template, dict) and "default" not in templates:
        raise RecipeError(
            f"data.task chat: the chat templates of this model have the names {shown(list(templates))}, and none is named "
            "default; give data.chat_template, a Jinja file"
        )


def assistant_only(tokenizer: PreTrainedTokenizerBase, section: DataSection) -> bool:
    """Whether the loss can be, and shall be, that of the assistant's tokens alone.

    Raises:
        RecipeError: it shall be, but neither the chat template nor TRL's training template for it marks them.

    """
    if section.task != "chat" or section.assistant_only is False:
        return False
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers  # slow to import

    if has_generation_markers(tokenizer.chat_template or ""):
        return True
    # TRL compares the template with those that it knows. It would render it, too, here and without limits.
    unrendered: Any = SimpleNamespace(chat_template=tokenizer.chat_template, apply_chat_template=lambda *_, **__: "")
    try:
        get_training_chat_template(unrendered)
    except Exception:  # ValueError for a template that TRL does not know
        if section.assistant_only:
            raise RecipeError(
                "data.assistant_only: the chat template does not mark the assistant's tokens ({% generation %}), and TRL has no "
                "training template for it; give data.chat_template with marks, or assistant_only=false"
            ) from None
        return False
    return True


def encode_sft(rows: Dataset, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> Dataset:
    """`input_ids`, `attention_mask`, `labels` (-100: not taught) and `length` of each row, as TRL's SFTTrainer makes them.

    Rows longer than `data.max_length` are cut at their end, with a warning.

    Args:
        rows: of `sft_examples`.
        tokenizer: of the base model, with its chat template.
        section: task, `max_length`, `assistant_only`.

    Raises:
        DataError: a row that the chat template refuses, or in which it marks no token of the assistant.
        RecipeError: the tokenizer has no token for the end of a text, or the chat template takes far too much time or memory.

    """
    if section.task != "chat":
        end_of_text(tokenizer)
    examples = [json.loads(example) for example in rows["example"][:]]
    only = assistant_only(tokenizer, section)
    _check_template(tokenizer, section, examples, marks=only)
    try:
        ids, labels = _by_trl(examples, tokenizer, assistant_only=only)
    except Exception as error:  # jinja's, the tokenizer's or TRL's own: found again, with the row
        number, cause = _first_refused(examples, tokenizer, assistant_only=only) or (None, error)
        where = "an example" if number is None else f"example {number}"
        raise _cannot_be_tokens(where, cause, section) from None
    most = section.max_length
    if cut := sum(len(one) > most for one in ids):
        warnings.warn(
            f"{cut:,} of {len(ids):,} examples are longer than data.max_length ({most} tokens): they are cut at their end",
            LorankWarning,
            stacklevel=3,
        )
    ids, labels = [one[:most] for one in ids], [one[:most] for one in labels]
    lengths = [len(one) for one in ids]
    masks = [[1] * length for length in lengths]
    return Dataset.from_dict({"input_ids": ids, "attention_mask": masks, "labels": labels, "length": lengths})


def _check_template(
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    examples: Sequence[Mapping[str, Any]],
    *,
    marks: bool,
) -> None:
    """Try the chat template with limits, on those examples that are chats."""
    if tokenizer.chat_template is not None:
        try:
            check_chat_template(tokenizer.chat_template, tokenizer.special_tokens_map, examples, marks=marks)
        except ValueError as error:
            raise RecipeError(f"data.task {section.task}: {error}") from None


def _by_trl(
    examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and labels of each example: an SFTTrainer prepares its data when it is made, of a model that does not matter."""
    from trl import SFTConfig, SFTTrainer  # slow to import, and for these tasks alone

    named = {name for example in examples for name in example}
    usual: dict[str, Any] = {"chat_template_kwargs": {}} if "chat_template_kwargs" in named else {}
    filled = [{**usual, **one} for one in examples]
    with _random_state_kept(), quiet_loading(), without_panics():
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
        )
        arguments = SFTConfig(
            output_dir="unused",
            use_cpu=only_cpu(),
            bf16=False,
            report_to="none",
            max_length=None,
            assistant_only_loss=assistant_only,
            **{CHECKPOINTING: False},
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(filled, on_mixed_types="use_json"),
            processing_class=tokenizer,
        )
    tokens: Any = trainer.train_dataset
    return tokens["input_ids"][:], tokens["labels"][:]


def _first_refused(
    examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool
) -> tuple[int, Exception] | None:
    """Number of the first example that cannot be prepared, and why; by halves."""
    low, high, cause = 0, len(examples), None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            _by_trl(examples[low:middle], tokenizer, assistant_only=assistant_only)
        except Exception as error:
            high, cause = middle, error
        else:
            low = middle
    try:
        _by_trl(examples[low:high], tokenizer, assistant_only=assistant_only)
    except Exception as error:
        return low, error
    return None if cause is None else (low, cause)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """SFTTrainer sets a seed; to look at data must change no draw."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)


def _streamed_tokens(tokenizer: PreTrainedTokenizerBase, section: DataSection) -> Iterator[dict[str, list[int]]]:
    """Tokens and labels of streamed rows that have something to learn, cut to `data.max_length`.

    The chat template is tried on the first rows, with limits.

    Raises:
        DataError: a row that cannot be made into tokens, or a whole pass without a token to learn.

    """
    only, learnt, rows = assistant_only(tokenizer, section), True, streamed_examples(section)
    while True:
        taken = list(islice(rows, _STREAMED_AT_A_TIME))
        examples = [json.loads(example) for _, example in taken]
        if taken[0][0] == 0:
            _check_template(tokenizer, section, examples, marks=only)
        try:
            made = _by_trl(examples, tokenizer, assistant_only=only)
        except Exception as error:
            number, cause = _first_refused(examples, tokenizer, assistant_only=only) or (0, error)
            raise _cannot_be_tokens(f"streamed example {taken[number][0]}", cause, section) from None
        for (number, _), ids, labels in zip(taken, *made, strict=True):
            if number == 0:
                if not learnt:
                    raise DataError(
                        "data.train: no streamed example has a token to learn within data.max_length "
                        f"({section.max_length} tokens); raise it"
                    )
                learnt = False
            row = {"input_ids": ids[: section.max_length], "labels": labels[: section.max_length]}
            if any(label != IGNORED for label in row["labels"][1:]):
                learnt = True
                yield row


def _cannot_be_tokens(where: str, cause: Exception, section: DataSection) -> DataError:
    other = ", or give another chat template as data.chat_template" * (section.task == "chat")
    return DataError(
        f"data.task {section.task}: {where} cannot be made into tokens ({type(cause).__name__}: {one_line(cause):.300}); "
        f"mend it or leave it out{other}"
    )


def taught(rows: Dataset) -> list[int]:
    """Numbers of the rows with at least one label; the first token has none, as nothing stands before it."""
    return [row for row, labels in enumerate(rows["labels"][:]) if any(label != IGNORED for label in labels[1:])]


def with_tokens(data: TaskData, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> TaskData:
    """The data of chat, completion and text with the tokens of each example, made once; others as they are.

    Examples that are cut before their first token with a label teach nothing, and are left out.

    Raises:
        DataError: no example is left of a part, or one that cannot be made into tokens.

    Warns:
        LorankWarning: examples are cut, or left out.

    """
    if not section.is_sft:
        return data
    made = dict[str, Dataset]()
    for part, rows in data.parts.items():
        try:
            tokens = encode_sft(rows, tokenizer, section)
        except DataError as error:
            raise DataError(f"data.{part}: {error}") from None
        kept = taught(tokens)
        if not kept:
            raise DataError(
                f"data.{part}: no example has a token to learn within data.max_length ({section.max_length} tokens); raise it"
            )
        if len(kept) < len(tokens):
            warnings.warn(
                f"{len(tokens) - len(kept):,} of {len(tokens):,} {part} examples have no token to learn within data.max_length "
                f"({section.max_length} tokens): they are left out",
                LorankWarning,
                stacklevel=2,
            )
        made[part] = concatenate_datasets([rows, tokens], axis=1).select(kept)
    train = made[SCORING if data.streams else "train"]
    return replace(
        data,
        train=train,
        test=made.get("test"),
        more={name: made[name] for name in data.more},
        eval=made.get(EVAL),
        scoring=made.get(SCORING),
        stream=IterableDataset.from_generator(partial(_streamed_tokens, tokenizer, section)) if data.streams else None,
        packing_ratio=len(packed(train, section)) / len(train) if section.packing else 1.0,
    )
