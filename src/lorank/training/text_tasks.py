"""Tasks whose answer is text: what a row's prompt and target are, how an answer is read out of a text, what is measured.

Prompts are ours: the papers that use these tasks do not print theirs. `data.prompt` replaces them.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

Row = Mapping[str, Any]
Answer = Callable[[str], str | None]


@dataclass(frozen=True)
class TextTask:
    """A task for models that write.

    Attributes:
        columns: that its rows have, as on the hub; empty where the recipe names them.
        fields: row -> what a prompt can name in braces.
        prompt: template; the text behind its last brace is never cut.
        target: row -> what the model shall write.
        answer: text -> the answer in it, for exact match; None where there is none in it.
        metrics: what is measured unless the recipe says otherwise.

    """

    columns: tuple[str, ...]
    fields: Callable[[Row], Mapping[str, str]]
    prompt: str
    target: Callable[[Row], str]
    answer: Answer
    metrics: tuple[str, ...]


def plain(text: str) -> str | None:
    """The text in lower case, with single blanks and without a full stop at its end; None if nothing is left."""
    return " ".join(text.lower().split()).rstrip(".") or None


def stated(text: str) -> str | None:
    """The word behind the last "answer is"; the whole text, `plain`, where nobody says so."""
    found = re.findall(r"answer is:?\s*\(?([\w'-]+)", text, flags=re.IGNORECASE)
    return found[-1].lower() if found else plain(text)


def choice(text: str) -> str | None:
    """The letter or digit of a choice: behind the last "answer is", else at the start; None where there is neither."""
    found = re.findall(r"answer is:?\s*\(?([A-Za-z1-5])\b", text) or re.findall(r"^\s*\(?([A-E1-5])\b", text)
    return found[-1].upper() if found else None


def truth(text: str) -> str | None:
    """`true` or `false`, whichever comes first; yes and no mean the same; None where there is neither."""
    found = re.search(r"\b(true|false|yes|no)\b", text.lower())
    return {"yes": "true", "no": "false"}.get(found[0], found[0]) if found else None


def number(text: str) -> str | None:
    """GSM8K's final number: behind the last `####`, without `$` and thousands' commas, 72.0 as 72; None where there is none."""
    _, marked, rest = text.rpartition("####")
    found = re.match(r"\s*\$?\s*(-?[\d,]*\.?\d+)", rest) if marked else None
    if found is None:
        return None
    try:
        return f"{Decimal(found[1].replace(',', '')).normalize():f}"
    except InvalidOperation:
        return None


def _listed(labels: Any, texts: Any) -> str:
    return "\n".join(f"{label}. {text}" for label, text in zip(labels, texts, strict=True))


def _arc_fields(row: Row) -> Mapping[str, str]:
    return {"question": row["question"], "choices": _listed(row["choices"]["label"], row["choices"]["text"])}


def _instruction_fields(row: Row) -> Mapping[str, str]:
    asked = row["instruction"] if not row["input"] else f"{row['instruction']}\n\n{row['input']}"
    return {"instruction": asked}


def _boolq_fields(row: Row) -> Mapping[str, str]:
    return {"passage": row["passage"], "question": row["question"]}


TEXT_TASKS: Mapping[str, TextTask] = {
    "summarization": TextTask(
        (), lambda row: row, "{document}\nSummary:", lambda row: row["summary"], plain, ("rouge1", "rouge2", "rougeL")
    ),
    "instruction": TextTask(
        ("instruction", "input", "output"),
        _instruction_fields,
        "{instruction}\n\nAnswer:",
        lambda row: row["output"],
        stated,
        ("exact_match",),
    ),
    "boolq": TextTask(
        ("question", "passage", "answer"),
        _boolq_fields,
        "{passage}\n\nQuestion: {question}?\nTrue or false?",
        lambda row: str(row["answer"]).lower(),
        truth,
        ("exact_match",),
    ),
    "arc": TextTask(
        ("question", "choices", "answerKey"),
        _arc_fields,
        "Question: {question}\n{choices}\nAnswer:",
        lambda row: row["answerKey"],
        choice,
        ("exact_match",),
    ),
    "gsm8k": TextTask(
        ("question", "answer"),
        lambda row: {"question": row["question"]},
        "Question: {question}\nAnswer:",
        lambda row: row["answer"],
        number,
        ("exact_match",),
    ),
    "aqua": TextTask(
        ("question", "options", "rationale", "correct"),
        lambda row: {"question": row["question"], "options": "\n".join(row["options"])},
        "Question: {question}\n{options}\nAnswer:",
        lambda row: f"{row['rationale']}\nThe answer is {row['correct']}",
        choice,
        ("exact_match",),
    ),
}
