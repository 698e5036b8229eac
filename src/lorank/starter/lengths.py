"""How long examples are, in tokens, from the first rows."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from lorank.starter.columns import LABELLED, TaskColumns
from lorank.tasks.data import labelled_texts
from lorank.tasks.files import Rows
from lorank.tasks.section import SFT_COLUMNS, DataSection
from lorank.tasks.sft_rows import sft_examples
from lorank.tasks.sft_tokens import encode_sft
from lorank.tasks.text_data import prompts_and_targets

_CHARACTERS = 4  # of a token, about, where there is no tokenizer
_SHARE = 0.99  # of rows that are not cut
_UNCUT = 10**9  # tokens


@dataclass(frozen=True)
class Lengths:
    """Lengths of the first rows.

    Attributes:
        inputs: tokens of each text, or prompt.
        targets: tokens of each text that is to be written; none where a text is one piece.
        unit: what was counted.

    """

    inputs: Sequence[int]
    targets: Sequence[int]
    unit: str


def lengths_of(rows: Rows, columns: TaskColumns, tokenizer: PreTrainedTokenizerBase | None) -> Lengths:
    """Count the tokens of rows, as the task puts them together.

    Raises:
        DataError: a row that the task cannot take.
        RecipeError: the tokenizer has no token for the end of a text, and the task needs one.

    """

    def count(*texts: str) -> int:
        if tokenizer is None:
            return math.ceil(sum(map(len, texts)) / _CHARACTERS)
        return len(tokenizer(*texts)["input_ids"])

    unit = "tokens" if tokenizer is not None else f"tokens (characters / {_CHARACTERS})"
    named = {"text": columns.text, "label": columns.label} if columns.text else {}
    section = DataSection(train="-", test="-", task=columns.task, **named)
    if columns.task in SFT_COLUMNS:
        examples = sft_examples("train", rows, section)
        conversations = any(_is_conversation(json.loads(example)) for example in examples["example"][:])
        if tokenizer is not None and (tokenizer.chat_template is not None or not conversations):
            uncut = section.model_copy(update={"max_length": _UNCUT})
            with _without_bars():
                return Lengths(encode_sft(examples, tokenizer, uncut)["length"][:], (), unit)
        counts = [count("\n".join(_texts_of(json.loads(example)))) for example in examples["example"][:]]
        return Lengths(counts, (), f"{unit}, without a chat template" if tokenizer is not None else unit)
    if columns.task in LABELLED:
        made = labelled_texts("train", rows, section)
        texts = zip(*(made[name] for name in made if name != "content"), strict=True)
        return Lengths([count(*pair) for pair in texts], (), unit)
    asked = prompts_and_targets("train", rows, section)
    prompts = [count(row["prompt"] + row["cue"]) for row in asked]
    return Lengths(prompts, [count(row["target"]) + 1 for row in asked], unit)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Bars of a few rows would stand between the lines of the recipe."""
    off = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not off:
            datasets.enable_progress_bars()


def _is_conversation(example: Mapping[str, Any]) -> bool:
    return "messages" in example or isinstance(example.get("prompt"), list)


def _texts_of(example: Mapping[str, Any]) -> list[str]:
    """The texts of an example, or of its messages."""
    found = list[str]()
    for name in ("messages", "prompt", "completion", "text"):
        value = example.get(name, [])
        found += [value] if isinstance(value, str) else [str(one.get("content") or "") for one in value]
    return found


def covering(lengths: Sequence[int]) -> int:
    """The length that 99 % of them do not exceed, rounded up to a multiple of 16, and 32 at least."""
    ordered = sorted(lengths)
    return max(32, 16 * math.ceil(ordered[math.ceil(_SHARE * len(ordered)) - 1] / 16))
