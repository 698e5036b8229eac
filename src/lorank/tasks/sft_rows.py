"""Rows of the tasks chat, completion and text, as TRL reads them."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from lorank.errors import DataError, one_line
from lorank.tasks.files import Rows
from lorank.tasks.section import SFT_COLUMNS, DataSection

SHAREGPT = "conversations"  # the column in place of `messages`, with `from` and `value`
_ROLES = {"human": "user", "gpt": "assistant"}
OPTIONAL = ("tools", "chat_template_kwargs")  # columns that chat templates read, where rows have them


def sft_examples(part: str, rows: Rows, section: DataSection) -> Dataset:
    """Columns `example`, what TRL reads of a row as JSON, and `content`, its SHA-256.

    Raises:
        DataError: a row that has not the form of the task.

    """
    examples = [
        sft_example(f"{part} example {index}{rows.place(index)}", row, section) for index, row in enumerate(rows)
    ]
    content = [hashlib.sha256(example.encode("utf-8", "surrogatepass")).hexdigest() for example in examples]
    return Dataset.from_dict({"example": examples, "content": content})


def sft_example(where: str, row: Mapping[str, Any], section: DataSection) -> str:
    """What TRL reads of a row, as JSON.

    Raises:
        DataError: it has not the form of the task; `where` it is.

    """
    wanted = (*SFT_COLUMNS[section.task], SHAREGPT, *OPTIONAL)
    kept = {name: row[name] for name in wanted if row.get(name) is not None and row[name] == row[name]}
    if problem := _problem(kept, section.task):
        raise DataError(f"data.task {section.task}: {where} {problem}")
    try:
        return json.dumps(_without_none(_with_roles(kept)), ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(f"data.task {section.task}: {where} holds what is no JSON ({one_line(error)})") from None


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


def streamed(section: DataSection) -> IterableDataset:
    """The rows of a hub data set as TRL reads them, again and again: without an end that a resumed stage could lose count of."""

    def rows() -> Iterator[Mapping[str, Any]]:
        try:
            while True:
                loaded = datasets.load_dataset(section.name, section.config, split=section.train_split, streaming=True)
                number = -1
                for number, row in enumerate(loaded):
                    yield json.loads(sft_example(f"streamed example {number}", row, section))
                if number < 0:
                    raise DataError(
                        f"data.train: the split {section.train_split!r} has no examples; it needs at least one"
                    )
        except DataError:
            raise
        except Exception as error:  # datasets raises many kinds, arrow's and the hub's among them
            raise DataError(f"data.train: cannot be read ({type(error).__name__}: {one_line(error)})") from error

    return IterableDataset.from_generator(rows)
