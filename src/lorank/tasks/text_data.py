"""Rows of a text task as prompts and targets, and both as tokens: the loss is that of the target alone."""

import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorank.errors import DataError, LorankWarning, RecipeError, one_line, shown
from lorank.tasks.files import Rows
from lorank.tasks.section import DataSection
from lorank.tasks.text_tasks import TEXT_TASKS

IGNORED = -100  # labels that transformers' losses leave out


def prompts_and_targets(part: str, rows: Rows, section: DataSection) -> Dataset:
    """Columns `prompt`, `cue` (the end of the prompt, never cut), `target`, and `content`, a hash of the whole prompt.

    Raises:
        DataError: a row without what the task needs, or a target without an answer.
        RecipeError: a prompt that names what rows do not have.

    """
    columns: dict[str, list[str]] = {"prompt": [], "cue": [], "target": [], "content": []}
    for index, row in enumerate(rows):
        where = f"{part} example {index}"
        try:
            fields, target = _filled(where, row, section)
            prompt, cue = _prompt(fields, section)
            if not (prompt + cue).strip():
                raise DataError(f"data: {where} has an empty prompt; fill it in, or leave the example out")
        except DataError as error:
            raise DataError(f"{error}{rows.place(index)}") from None
        columns["prompt"].append(prompt)
        columns["cue"].append(cue)
        columns["target"].append(target.strip())
        columns["content"].append(hashlib.sha256(json.dumps([prompt, cue]).encode()).hexdigest())
    unread = sum(not re.search("[A-Za-z0-9]", target) for target in columns["target"])
    if unread and section.task == "summarization":
        warnings.warn(
            f"{unread} of {len(rows)} {part} targets have no ASCII letter or digit, and ROUGE (rouge-score) sees no others: it "
            "is 0 there",
            LorankWarning,
            stacklevel=2,
        )
    return Dataset.from_dict(columns)


def _filled(where: str, row: Mapping[str, Any], section: DataSection) -> tuple[Mapping[str, str], str]:
    """What the prompt can name, and the target."""
    task = TEXT_TASKS[section.task]
    # NaN is what pandas writes for null.
    row = {name: None if value != value else value for name, value in row.items()}
    for name in task.columns:
        if row[name] is None and name not in task.may_be_null:
            raise DataError(f"data: {where} has None in {name!r}; fill it in, or leave the example out")
        if not (row[name] is None or name in task.not_strings or isinstance(row[name], str)):
            raise DataError(f"data: {where} has {shown(row[name])} as {name}; texts are allowed")
    try:
        if section.task == "summarization":
            fields: Mapping[str, str] = {name: row[name] for name in section.text}
            target = row[section.label]
        else:
            fields, target = task.fields(row), task.target(row)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"data.task {section.task}: {where} does not have the form of this task ({type(error).__name__}: {one_line(error)})"
        ) from None
    for name, text in (*fields.items(), ("the target", target)):
        if not isinstance(text, str) or (name == "the target" and not text.strip()):
            raise DataError(f"data: {where} has {shown(text)} as {name}; texts are allowed")
    if task.answer(target) is None:
        raise DataError(
            f"data.task {section.task}: {where} has no answer in its target {shown(target)} (docs/tasks.md)"
        )
    return fields, target


def _prompt(fields: Mapping[str, str], section: DataSection) -> tuple[str, str]:
    """The prompt up to the end of the field that may be cut, and the rest of it."""
    task, template, cut = TEXT_TASKS[section.task], section.prompt, TEXT_TASKS[section.task].cut
    if section.task == "summarization":
        template = template or "\n".join([*(f"{{{name}}}" for name in section.text), "Summary:"])
        cut = section.text[-1]
    template = template or task.prompt
    head, named, tail = template.rpartition(f"{{{cut}}}")
    if not named:  # a template of the user's own, without that field: its first one may be cut
        head, brace, tail = template.partition("}")
        head, named = head + brace, ""
    try:
        return (head + named).format(**fields), tail.format(**fields)
    except (KeyError, IndexError, ValueError) as error:
        names = ", ".join(f"{{{name}}}" for name in fields)
        raise RecipeError(
            f"data.prompt cannot be filled in ({one_line(error)}); rows of this task have {names}"
        ) from None


def needed_columns(section: DataSection) -> tuple[str, ...]:
    """Columns that rows must have, of tasks whose columns are their own."""
    return TEXT_TASKS[section.task].columns


def encode_text(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, section: DataSection, *, encoder_decoder: bool
) -> Dataset:
    """`input_ids`, `attention_mask`, `labels` and `length` of each row, not padded.

    An encoder-decoder reads the prompt and is taught the target. A decoder reads the prompt and goes on with a blank, the target
    and the end of the text; labels of the prompt are `IGNORED`. `length` counts what the model reads and what it is taught. A
    target that is too long is cut, and is not taught to end there. How many were cut is warned of.

    Raises:
        RecipeError: a decoder's tokenizer has no token for the end of a text.

    """
    end, most = end_of_text(tokenizer), section.target_length

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt, cut = prompt_ids(tokenizer, row, section.max_length, keeps_end=encoder_decoder)
        if encoder_decoder:
            taught = list(tokenizer(text_target=row["target"])["input_ids"])
            ids, before = prompt, 0
        else:
            taught = [*tokenizer(f" {row['target']}", add_special_tokens=False)["input_ids"], end]
            ids, before = [*prompt, *taught[:most]], len(prompt)
        labels = [IGNORED] * before + taught[:most]
        length = len(labels) if before else len(ids) + len(labels)
        return {"input_ids": ids, "labels": labels, "length": length, "cut": [cut, len(taught) > most]}

    encoded = rows.map(encode, remove_columns=rows.column_names, keep_in_memory=True)
    prompts, targets = (sum(column) for column in zip(*encoded["cut"], strict=True))
    if prompts or targets:
        warnings.warn(
            f"{prompts} of {len(rows)} prompts are longer than data.max_length ({section.max_length} tokens), {targets} targets "
            f"than data.max_target_length ({most}): they are cut; an answer at the end of a target is lost with it",
            LorankWarning,
            stacklevel=3,
        )
    encoded = encoded.remove_columns("cut")
    return encoded.add_column("attention_mask", [[1] * len(ids) for ids in encoded["input_ids"]])


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], max_length: int, *, keeps_end: bool
) -> tuple[list[int], bool]:
    """Tokens of a prompt, at most `max_length`, and whether it was cut: where its cue begins, which stays whole.

    Args:
        tokenizer: of the base model.
        row: with `prompt` and `cue`.
        max_length: in tokens.
        keeps_end: encoders get the tokenizer's mark of the end, texts that go on do not.

    Raises:
        RecipeError: the cue alone is too long.

    """
    cue = tokenizer(row["cue"], add_special_tokens=False)["input_ids"] if row["cue"] else []
    ids = list(tokenizer(row["prompt"])["input_ids"])
    marked = [tokenizer.eos_token_id, tokenizer.sep_token_id]
    last = [ids.pop()] if len(ids) > 1 and ids[-1] is not None and ids[-1] in marked else []
    end = last if keeps_end else []
    room = max_length - len(cue) - len(end)
    if room < 1:
        raise RecipeError(
            f"data.max_length {max_length} leaves no room for a prompt of which {len(cue)} tokens are never cut; raise it, or "
            "shorten data.prompt"
        )
    return [*ids[:room], *cue, *end], len(ids) > room


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts the end behind every text."""
    ids = tokenizer("a")["input_ids"]
    return len(ids) > 1 and ids[-1] == tokenizer.eos_token_id


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text.

    Raises:
        RecipeError: the tokenizer has none.

    """
    if tokenizer.eos_token_id is None:
        raise RecipeError("model: its tokenizer has no token for the end of a text, so it could not learn to stop")
    return int(tokenizer.eos_token_id)
