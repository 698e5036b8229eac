"""Rows of the tasks chat, completion and text, and what TRL makes of them: tokens, and labels of what is taught."""

import hashlib
import json
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from lorank.errors import DataError, LorankWarning, RecipeError, one_line
from lorank.models.loading import quiet_loading
from lorank.processes import only_cpu
from lorank.tasks.evaluation_settings import CHECKPOINTING
from lorank.tasks.files import Rows
from lorank.tasks.section import SFT_COLUMNS, DataSection
from lorank.tasks.text_data import IGNORED, end_of_text

SHAREGPT = "conversations"  # the column in place of `messages`, with `from` and `value`
_ROLES = {"human": "user", "gpt": "assistant"}
OPTIONAL = ("tools", "chat_template_kwargs")  # columns that chat templates read, where rows have them


def sft_examples(part: str, rows: Rows, section: DataSection) -> Dataset:
    """Columns `example`, what TRL reads of a row as JSON, and `content`, its SHA-256.

    Raises:
        DataError: a row that has not the form of the task.

    """
    examples = list[str]()
    for index, row in enumerate(rows):
        where = f"{part} example {index}{rows.place(index)}"
        kept = {name: value for name, value in row.items() if value is not None and value == value}
        if problem := _problem(kept, section.task):
            raise DataError(f"data.task {section.task}: {where} {problem}")
        try:
            examples.append(json.dumps(_without_none(_with_roles(kept)), ensure_ascii=False, sort_keys=True))
        except (TypeError, ValueError) as error:
            raise DataError(f"data.task {section.task}: {where} holds what is no JSON ({one_line(error)})") from None
    content = [hashlib.sha256(example.encode("utf-8", "surrogatepass")).hexdigest() for example in examples]
    return Dataset.from_dict({"example": examples, "content": content})


def _problem(row: Mapping[str, Any], task: str) -> str | None:
    """What is wrong with a row, to go behind its name."""
    if task == "chat":
        name = "messages" if "messages" in row else SHAREGPT
        return _problem_of_messages(name, row.get(name))
    if task == "completion" and isinstance(row.get("prompt"), list):
        problems = (_problem_of_messages(name, row.get(name)) for name in SFT_COLUMNS[task])
        return next((problem for problem in problems if problem), None)
    for name in SFT_COLUMNS[task]:
        text = row.get(name)
        if not isinstance(text, str):
            return f"has {text!r:.80} as {name}; a text is allowed" + (
                ", or two lists of messages" * (task == "completion")
            )
        if not text and name != "prompt":
            return f"has an empty {name}; fill it in, or leave the example out"
    return None


def _problem_of_messages(name: str, messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"has {messages!r:.80} as {name}; a list of messages is allowed, each with role and content"
    for number, message in enumerate(messages):
        known = isinstance(message, Mapping) and (
            isinstance(message.get("role"), str) or isinstance(message.get("from"), str)
        )
        if not known:
            return f"has {message!r:.80} as message {number} of {name}; one with role and content is allowed"
    return None


def _with_roles(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Conversations in ShareGPT's words as messages; other rows as they are."""
    if SHAREGPT not in row or "messages" in row:
        return row
    told = [
        message
        if "role" in message
        else {"role": _ROLES.get(message["from"], message["from"]), "content": message.get("value")}
        for message in row[SHAREGPT]
    ]
    return {**{name: value for name, value in row.items() if name != SHAREGPT}, "messages": told}


def _without_none(value: Any) -> Any:
    """Keys without a value are those that parquet writes for messages that lack them; templates would print None."""
    if isinstance(value, Mapping):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value


def set_chat_template(tokenizer: PreTrainedTokenizerBase, section: DataSection) -> None:
    """Give the tokenizer the template of `data.chat_template`.

    Raises:
        RecipeError: the file cannot be read, or there is no template at all.

    """
    if section.task != "chat":
        return
    if section.chat_template is not None:
        path = Path(section.chat_template)
        try:
            tokenizer.chat_template = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"data.chat_template: {path} cannot be read ({error}); give a Jinja file") from None
    if tokenizer.chat_template is None:
        raise RecipeError(
            "data.task chat: the tokenizer of this model has no chat template; give data.chat_template, a Jinja file, or a model "
            "that was trained to chat"
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
    try:
        get_training_chat_template(tokenizer)
    except (
        Exception
    ) as error:  # ValueError for a template that TRL does not know; jinja's for one that it cannot render
        if section.assistant_only:
            raise RecipeError(
                "data.assistant_only: the chat template does not mark the assistant's tokens ({% generation %}), and TRL has no "
                f"training template for it ({one_line(error):.120}); give data.chat_template with marks, or "
                "assistant_only=false"
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
        RecipeError: the tokenizer has no token for the end of a text.

    """
    if section.task != "chat":
        end_of_text(tokenizer)
    examples = [json.loads(example) for example in rows["example"][:]]
    only = assistant_only(tokenizer, section)
    try:
        ids, labels = _by_trl(examples, tokenizer, assistant_only=only)
    except Exception as error:  # jinja's, the tokenizer's or TRL's own: found again, with the row
        number, cause = _first_refused(examples, tokenizer, assistant_only=only) or (None, error)
        where = "an example" if number is None else f"example {number}"
        raise DataError(
            f"data.task {section.task}: {where} cannot be made into tokens ({type(cause).__name__}: {one_line(cause):.300}); "
            "mend it or leave it out"
        ) from None
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


def _by_trl(
    examples: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, assistant_only: bool
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens and labels of each example: an SFTTrainer prepares its data when it is made, of a model that does not matter."""
    from trl import SFTConfig, SFTTrainer  # slow to import, and for these tasks alone

    named = {name for example in examples for name in example}
    usual: dict[str, Any] = {"chat_template_kwargs": {}} if "chat_template_kwargs" in named else {}
    filled = [{**usual, **one} for one in examples]
    with _random_state_kept(), quiet_loading():
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


def taught(rows: Dataset) -> list[int]:
    """Numbers of the rows with at least one label; the first token has none, as nothing stands before it."""
    return [row for row, labels in enumerate(rows["labels"][:]) if any(label != IGNORED for label in labels[1:])]


def packed(rows: Dataset, section: DataSection) -> Dataset:
    """Rows of `encode_sft` put together into rows of at most `data.max_length` tokens (best fit, longest first), by TRL.

    `seq_lengths` says how long the examples of a row are; labels of their first tokens are left out when batches are made.
    """
    from trl import pack_dataset  # slow to import

    together = pack_dataset(rows.select_columns(["input_ids", "labels"]), section.max_length, "bfd")
    return together.add_column("length", [len(ids) for ids in together["input_ids"][:]])
