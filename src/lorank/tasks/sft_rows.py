"""Rows of the tasks chat, completion and text, as TRL reads them."""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorank.errors import DataError, one_line, shown
from lorank.tasks.files import Rows
from lorank.tasks.section import SFT_COLUMNS, DataSection

SHAREGPT = "conversations"  # the column in place of `messages`, with `from` and `value`
_ROLES = {"human": "user", "gpt": "assistant"}
# Arguments of the call that renders, another template among them; a row gives variables of the template.
_ARGUMENTS = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    "conversations",
    "messages",
} - {"documents"}
OPTIONAL = ("tools", "chat_template_kwargs")  # columns that chat templates read, where rows have them


def sft_examples(part: str, rows: Rows, section: DataSection) -> Dataset:
    """Columns `example`, what TRL reads of a row as JSON, and `content`, its SHA-256.

    Raises:
        DataError: a row that has not the form of the task, or another form than the first row.

    """
    examples, first = list[str](), None
    for index, row in enumerate(rows):
        where = f"{part} example {index}{rows.place(index)}"
        examples.append(sft_example(where, row, section))
        first = _same_form(where, row, first, section)
    content = [hashlib.sha256(example.encode("utf-8", "surrogatepass")).hexdigest() for example in examples]
    return Dataset.from_dict({"example": examples, "content": content})


def sft_example(where: str, row: Mapping[str, Any], section: DataSection) -> str:
    """What TRL reads of a row, as JSON.

    Raises:
        DataError: it has not the form of the task; `where` it is.

    """
    chats = ("messages",) if row.get("messages") is not None else (SHAREGPT,)
    wanted = (*(chats if section.task == "chat" else SFT_COLUMNS[section.task]), *OPTIONAL)
    kept = {name: row[name] for name in wanted if row.get(name) is not None and row[name] == row[name]}
    if problem := _problem(kept, section.task):
        raise DataError(f"data.task {section.task}: {where} {problem}")
    told = {
        "messages" if name == SHAREGPT else name: [_message(one) for one in value] if _is_told(name, value) else value
        for name, value in kept.items()
    }
    try:
        return json.dumps(told, ensure_ascii=False, sort_keys=True)
    except (TypeError, ValueError) as error:
        raise DataError(f"data.task {section.task}: {where} holds what is no JSON ({one_line(error)})") from None


def _same_form(where: str, row: Mapping[str, Any], first: bool | None, section: DataSection) -> bool:
    """Whether a row's prompt is a list of messages, as that of the first row: TRL prepares all rows as the first one.

    Raises:
        DataError: it is another.

    """
    listed = section.task == "completion" and isinstance(row.get("prompt"), list)
    if first is not None and listed != first:
        kinds = ("a text", "a list of messages")
        raise DataError(
            f"data.task completion: {where} has {kinds[listed]} as prompt, the first row {kinds[first]}; one form for all rows "
            "is needed"
        )
    return listed


def _problem(row: Mapping[str, Any], task: str) -> str | None:
    """What is wrong with a row, to go behind its name."""
    options = row.get("chat_template_kwargs", {})
    if not isinstance(options, Mapping):
        return f"has {shown(options)} as chat_template_kwargs; a mapping of the template's variables is allowed"
    if known := sorted(_ARGUMENTS & set(options)):
        return f"has {known[0]} in chat_template_kwargs, which is no variable of a template; take it out"
    if task == "chat":
        name = SHAREGPT if SHAREGPT in row else "messages"
        return _problem_of_messages(name, row.get(name))
    if task == "completion" and isinstance(row.get("prompt"), list):
        problems = (_problem_of_messages(name, row.get(name)) for name in SFT_COLUMNS[task])
        return next((problem for problem in problems if problem), None)
    for name in SFT_COLUMNS[task]:
        text = row.get(name)
        if not isinstance(text, str):
            return f"has {shown(text)} as {name}; a text is allowed" + (
                ", or two lists of messages" * (task == "completion")
            )
        if not text and name != "prompt":
            return f"has an empty {name}; fill it in, or leave the example out"
    return None


def _problem_of_messages(name: str, messages: Any) -> str | None:
    if not isinstance(messages, list) or not messages:
        return f"has {shown(messages)} as {name}; a list of messages is allowed, each with role and content"
    for number, message in enumerate(messages):
        known = isinstance(message, Mapping) and (
            isinstance(message.get("role"), str) or isinstance(message.get("from"), str)
        )
        if not known:
            return f"has {shown(message)} as message {number} of {name}; one with role and content is allowed"
    return None


def _is_told(name: str, value: Any) -> bool:
    """Whether a column holds messages."""
    return name in ("messages", SHAREGPT, "prompt", "completion") and isinstance(value, list)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with role and content, also where it is in ShareGPT's words.

    Keys without a value are those that parquet writes for messages that lack them; templates would print None.
    """
    if "role" not in message:
        return {"role": _ROLES.get(message["from"], message["from"]), "content": message.get("value")}
    return {key: value for key, value in message.items() if value is not None}


def streamed_examples(section: DataSection) -> Iterator[tuple[int, str]]:
    """Number and JSON of each row of a hub data set, again and again: without an end that a resumed stage could lose count of.

    Raises:
        DataError: it cannot be read, has no rows, or one of another form.

    """
    first: bool | None = None
    while True:
        number = -1
        try:
            loaded = datasets.load_dataset(section.name, section.config, split=section.train_split, streaming=True)
            for number, row in enumerate(loaded):
                where = f"streamed example {number}"
                example = sft_example(where, row, section)
                first = _same_form(where, row, first, section)
                yield number, example
        except DataError:
            raise
        except Exception as error:  # datasets raises many kinds, arrow's and the hub's among them
            raise DataError(f"data.train: cannot be read ({type(error).__name__}: {one_line(error)})") from error
        if number < 0:
            raise DataError(f"data.train: the split {section.train_split!r} has no examples; it needs at least one")


def packed(rows: Dataset, section: DataSection) -> Dataset:
    """Rows of `encode_sft` put together into rows of at most `data.max_length` tokens (best fit, longest first), by TRL.

    `seq_lengths` says how long the examples of a row are; labels of their first tokens are left out when batches are made.
    """
    from trl import pack_dataset  # slow to import

    together = pack_dataset(rows.select_columns(["input_ids", "labels"]), section.max_length, "bfd")
    return together.add_column("length", [len(ids) for ids in together["input_ids"][:]])
