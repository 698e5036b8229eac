"""Tasks whose answer is text: what a row's prompt and target are, how an answer is read out of a text, what is measured.

Prompts are ours: the papers that use these tasks do not print theirs. `data.prompt` replaces them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from lorank.errors import shown

Row = Mapping[str, Any]
Answer = Callable[[str], str | None]
_NUMBER = r"(?:\$?\s*-?|-\s*\$\s*)[\d,]*\.?\d+"


@dataclass(frozen=True)
class TextTask:
    """A task for models that write.

    Attributes:
        columns: that its rows have, as on the hub; empty where the recipe names them.
        fields: row -> what a prompt can name in braces.
        prompt: template.
        cut: the field at whose end a long prompt is cut; what follows it stays whole.
        tokens: most of a target, unless the recipe says otherwise.
        target: row -> what the model shall write.
        answer: text -> the answer in it, for exact match; None where there is none in it.
        metrics: what is measured unless the recipe says otherwise.
        not_strings: columns that hold something else than strings, which `fields` and `target` look at.
        may_be_null: columns that may be without a value.

    """

    columns: tuple[str, ...]
    fields: Callable[[Row], Mapping[str, str]]
    prompt: str
    cut: str
    tokens: int
    target: Callable[[Row], str]
    answer: Answer
    metrics: tuple[str, ...]
    not_strings: tuple[str, ...] = ()
    may_be_null: tuple[str, ...] = ()


def plain(text: str) -> str | None:
    """The text in lower case, with single blanks and without marks at its end; None if nothing is left. 1,234.0 is 1234."""
    words = " ".join(text.lower().split()).strip(" .!*")
    return as_number(words) or words or None


def stated(text: str) -> str | None:
    """What stands behind the last "answer is" or "answer:", to the end of the sentence; the whole text where nobody says so."""
    answers = re.findall(r"answer(?: is\b:?|:)\s*(.+?)(?=[.!?;]\s|\n|$)", text, flags=re.IGNORECASE)
    return plain(answers[-1] if answers else text)


def choice(text: str) -> str | None:
    """The capital letter, or digit, of a choice: behind the last "answer is" or "answer:", or alone at the start; else None."""
    said = re.findall(r"[aA]nswer(?: is\b:?|:)[\s(*$]*([A-E1-5])(?!\w|[.,]\d)", text)
    alone = re.findall(r"^[\s(*$]*([A-E1-5])(?![.,]\d)(?:[).:*$]|\s*(?:\n|$))", text)
    return (said or alone or [None])[-1]


def truth(text: str) -> str | None:
    """`true` or `false`, whichever comes first; yes and no mean the same; None where there is neither."""
    match = re.search(r"\b(true|false|yes|no)\b", text.lower())
    return {"yes": "true", "no": "false"}.get(match[0], match[0]) if match else None


def number(text: str) -> str | None:
    """GSM8K's final number: behind the last `####`; None where there is none."""
    _, marked, rest = text.rpartition("####")
    match = re.match(rf"[\s*]*({_NUMBER})", rest) if marked else None
    return as_number(match[1]) if match else None


def as_number(text: str) -> str | None:
    """A number in one spelling: without `$` and thousands' commas, 72.0 as 72; None if it is none."""
    if len(text) > 1000 or not re.fullmatch(_NUMBER, text):
        return None
    value = Decimal(re.sub(r"[$,\s]", "", text))
    return f"{value.normalize():f}" if value else "0"


def _strings(name: str, values: Any) -> list[str]:
    """A list of strings; anything else would be written as Python shows it, None and 3.50 among them.

    Raises:
        TypeError: it is none.

    """
    if isinstance(values, str):
        raise TypeError(f"{name} is a text; a list of texts is allowed")
    for value in values:
        if not isinstance(value, str):
            raise TypeError(f"{name} has {shown(value)}; a list of texts is allowed")
    return list(values)


def _arc_fields(row: Row) -> Mapping[str, str]:
    labels, texts = (_strings(name, row["choices"][name]) for name in ("label", "text"))
    choices = "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))
    return {"question": row["question"], "choices": choices}


def _instruction_fields(row: Row) -> Mapping[str, str]:
    asked = row["instruction"] if not row["input"] else f"{row['instruction']}\n\n{row['input']}"
    return {"instruction": asked}


def _boolq_fields(row: Row) -> Mapping[str, str]:
    return {"passage": row["passage"], "question": row["question"].rstrip("?")}


def _boolq_target(row: Row) -> str:
    known = {"true": "true", "1": "true", "yes": "true", "false": "false", "0": "false", "no": "false"}
    return known[str(row["answer"]).lower()]


def _aqua_fields(row: Row) -> Mapping[str, str]:
    return {"question": row["question"], "options": "\n".join(_strings("options", row["options"]))}


TEXT_TASKS: Mapping[str, TextTask] = {
    "summarization": TextTask(
        (),
        lambda row: row,
        "{document}\nSummary:",
        "document",
        128,
        lambda row: row["summary"],
        plain,
        ("rouge1", "rouge2", "rougeL"),
    ),
    "instruction": TextTask(
        ("instruction", "input", "output"),
        _instruction_fields,
        "{instruction}\n\nAnswer:",
        "instruction",
        128,
        lambda row: row["output"],
        stated,
        ("exact_match",),
        may_be_null=("input",),
    ),
    "boolq": TextTask(
        ("question", "passage", "answer"),
        _boolq_fields,
        "{passage}\n\nQuestion: {question}?\nTrue or false?",
        "passage",
        8,
        _boolq_target,
        truth,
        ("exact_match",),
        not_strings=("answer",),
    ),
    "arc": TextTask(
        ("question", "choices", "answerKey"),
        _arc_fields,
        "Question: {question}\n{choices}\nAnswer:",
        "question",
        8,
        lambda row: row["answerKey"],
        choice,
        ("exact_match",),
        not_strings=("choices",),
    ),
    "gsm8k": TextTask(
        ("question", "answer"),
        lambda row: {"question": row["question"]},
        "Question: {question}\nAnswer:",
        "question",
        320,
        lambda row: row["answer"],
        number,
        ("exact_match",),
    ),
    "aqua": TextTask(
        ("question", "options", "rationale", "correct"),
        _aqua_fields,
        "Question: {question}\n{options}\nAnswer:",
        "question",
        320,
        lambda row: f"{row['rationale']}\nThe answer is {row['correct']}",
        choice,
        ("exact_match",),
        not_strings=("options",),
    ),
}
