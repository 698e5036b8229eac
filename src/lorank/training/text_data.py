"""Rows of a text task as prompts and targets, and both as tokens: the loss is that of the target alone."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorank.errors import DataError, RecipeError
from lorank.training.recipe_sections import DataSection
from lorank.training.text_tasks import TEXT_TASKS

IGNORED = -100  # labels that transformers' losses leave out


def prompts_and_targets(part: str, rows: Dataset, section: DataSection) -> Dataset:
    """Columns `prompt`, `cue` (the end of the prompt, never cut), `target`, and `content`, a hash of the whole prompt.

    Raises:
        DataError: a row without what the task needs, or an empty target.
        RecipeError: a prompt that names what rows do not have.

    """
    task = TEXT_TASKS[section.task]
    own = task.prompt.replace("{document}", f"{{{section.text[0]}}}")
    body, brace, cue = (section.prompt or own).rpartition("}")
    found: dict[str, list[str]] = {"prompt": [], "cue": [], "target": [], "content": []}
    for index, row in enumerate(rows):
        try:
            if section.task == "summarization":
                fields: Mapping[str, str] = {name: row[name] for name in section.text}
                target = row[section.label]
            else:
                fields, target = task.fields(row), task.target(row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"data.task {section.task}: {part} example {index} does not have the form of this task "
                f"({type(error).__name__}: {error})"
            ) from None
        for name, text in (*fields.items(), ("the target", target)):
            if not isinstance(text, str) or (name == "the target" and not text.strip()):
                raise DataError(f"data: {part} example {index} has {text!r} as {name}; texts are allowed")
        try:
            prompt = (body + brace).format(**fields)
        except (KeyError, IndexError, ValueError) as error:
            named = ", ".join(f"{{{name}}}" for name in fields)
            raise RecipeError(f"data.prompt cannot be filled in ({error}); rows of this task have {named}") from None
        found["prompt"].append(prompt)
        found["cue"].append(cue)
        found["target"].append(target.strip())
        found["content"].append(hashlib.sha256(json.dumps([prompt, cue]).encode()).hexdigest())
    return Dataset.from_dict(found)


def needed_columns(section: DataSection) -> tuple[str, ...]:
    """Columns that rows must have, of tasks whose columns are their own."""
    return TEXT_TASKS[section.task].columns


def encode_text(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, section: DataSection, *, encoder_decoder: bool
) -> Dataset:
    """`input_ids`, `attention_mask`, `labels` and `length` of each row, not padded.

    An encoder-decoder reads the prompt and is taught the target. A decoder reads the prompt and goes on with a blank, the target
    and the end of the text; labels of the prompt are `IGNORED`. `length` counts what the model reads and what it is taught.

    Raises:
        RecipeError: a decoder's tokenizer has no token for the end of a text.

    """
    end = end_of_text(tokenizer)

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt = prompt_ids(tokenizer, row, section.max_length, keeps_end=encoder_decoder)
        if encoder_decoder:
            target = tokenizer(text_target=row["target"], truncation=True, max_length=section.max_target_length)
            labels = list(target["input_ids"])
            return {"input_ids": prompt, "labels": labels, "length": len(prompt) + len(labels)}
        target = tokenizer(f" {row['target']}", add_special_tokens=False)["input_ids"][: section.max_target_length - 1]
        taught = [*target, end]
        ids = [*prompt, *taught]
        return {"input_ids": ids, "labels": [IGNORED] * len(prompt) + taught, "length": len(ids)}

    encoded = rows.map(encode, remove_columns=rows.column_names, keep_in_memory=True)
    return encoded.add_column("attention_mask", [[1] * len(ids) for ids in encoded["input_ids"]])


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any], max_length: int, *, keeps_end: bool
) -> list[int]:
    """Tokens of a prompt, at most `max_length`: a long one is cut where its cue begins, so that the question stays asked.

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
            f"data.max_length {max_length} leaves no room for a prompt whose end has {len(cue)} tokens; raise it, or shorten "
            "the text behind the last brace of data.prompt"
        )
    return [*ids[:room], *cue, *end]


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends a text.

    Raises:
        RecipeError: the tokenizer has none.

    """
    if tokenizer.eos_token_id is None:
        raise RecipeError("model: its tokenizer has no token for the end of a text, so it could not learn to stop")
    return int(tokenizer.eos_token_id)
