"""How long examples are, in tokens, from the first rows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from lorank.starter.columns import LABELLED, SFT, TaskColumns
from lorank.tasks.files import Rows
from lorank.tasks.section import DataSection
from lorank.tasks.text_data import prompts_and_targets

_CHARACTERS = 4  # of a token, about, where there is no tokenizer
_SHARE = 0.99  # of rows that are not cut


@dataclass(frozen=True)
class Lengths:
    """Lengths of the first rows.

    Attributes:
        inputs: tokens of each text, or prompt.
        targets: tokens of each text that is to be written; none where a text is one piece.
        counted: by a tokenizer, and not by characters.

    """

    inputs: Sequence[int]
    targets: Sequence[int]
    counted: bool

    @property
    def unit(self) -> str:
        """What was counted."""
        return "tokens" if self.counted else f"tokens (characters / {_CHARACTERS})"


def lengths_of(rows: Rows, columns: TaskColumns, tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    """Count the tokens of rows, as the task puts them together.

    Raises:
        DataError: a row that the task cannot take.

    """

    def count(*texts: str) -> int:
        if tokenizer is None:
            return math.ceil(sum(map(len, texts)) / _CHARACTERS)
        return len(tokenizer(*texts)["input_ids"])

    if columns.task in SFT:
        counts = [_of_example(row, columns.task, tokenizer, count) for row in rows]
        return Lengths(counts, (), tokenizer is not None)
    if columns.task in LABELLED:
        texts = zip(*(map(str, rows.columns[name]) for name in columns.text), strict=True)
        return Lengths([count(*pair) for pair in texts], (), tokenizer is not None)
    named = {"text": columns.text, "label": columns.label} if columns.text else {}
    made = prompts_and_targets("train", rows, DataSection(train="-", test="-", task=columns.task, **named))
    prompts = [count(row["prompt"] + row["cue"]) for row in made]
    return Lengths(prompts, [count(row["target"]) + 1 for row in made], tokenizer is not None)


def _of_example(
    row: Mapping[str, Any], task: str, tokenizer: PreTrainedTokenizerBase | None, count: Callable[..., int]
) -> int:
    names = ("messages", "conversations") if task == "chat" else SFT[task]
    values = [row[name] for name in names if row.get(name) is not None]
    if task == "chat" and "messages" in row and tokenizer is not None and tokenizer.chat_template:
        return count(str(tokenizer.apply_chat_template(row["messages"], tokenize=False)))
    return count(" ".join(_text_of(value) for value in values))


def _text_of(value: Any) -> str:
    """A text, or the texts of messages."""
    if isinstance(value, str):
        return value
    return "\n".join(str(one.get("content") or one.get("value") or "") for one in value if isinstance(one, Mapping))


def covering(lengths: Sequence[int]) -> int:
    """The length that 99 % of them do not exceed, rounded up to a multiple of 16, and 32 at least."""
    ordered = sorted(lengths)
    return max(32, 16 * math.ceil(ordered[math.ceil(_SHARE * len(ordered)) - 1] / 16))
