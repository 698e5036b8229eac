"""Labelled text from files or the hub, checked before anything expensive, split by content, tokenised."""

import csv
import hashlib
import json
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from lorank.errors import DataError
from lorank.training.recipe import DataSection

# GLUE-style tsv files hold bare quotes, and "null" and "NA" are words: nothing is quoted and nothing is missing.
_TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {"keep_default_na": False}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    ".parquet": ("parquet", {}),
}


@dataclass(frozen=True)
class TaskData:
    """Checked examples, labels as numbers.

    Attributes:
        train: text columns `text_1` (and `text_2`), `labels`, and `content`, a hash of the texts.
        test: the same, evaluated once at the end.
        label_names: name of each class in order; empty for regression.
        hashes: SHA-256 over the content of each part, for the record and for resuming.

    """

    train: Dataset
    test: Dataset
    label_names: tuple[str, ...]
    hashes: Mapping[str, str]


def load_task_data(section: DataSection) -> TaskData:
    """Load both parts and check them.

    Raises:
        DataError: missing file or column, a text or label that is missing, labels that do not fit the task or that
            the training data does not know, no examples, a single class.

    """
    raw = {"train": _load(section, "train"), "test": _load(section, "test")}
    for part, rows in raw.items():
        _check_columns(part, rows, section)
    names: tuple[str, ...] = ()
    numbers: dict[str, int] = {}
    if section.task == "classification":
        names = _class_names(raw["train"][section.label], section.label)
        numbers = {name: number for number, name in enumerate(names)}
        feature = raw["train"].features[section.label]
        if isinstance(
            feature, datasets.ClassLabel
        ):  # a hub data set: labels are numbers already, with names beside them
            names, numbers = tuple(feature.names), {str(number): number for number in range(len(feature.names))}
    parts = {part: _clean(part, rows, section, numbers) for part, rows in raw.items()}
    return TaskData(parts["train"], parts["test"], names, {part: content_hash(rows) for part, rows in parts.items()})


def content_hash(rows: Dataset) -> str:
    """SHA-256 over texts and labels of all examples, in order."""
    digest = hashlib.sha256()
    for content, label in zip(rows["content"], rows["labels"], strict=True):
        digest.update(f"{content}\t{label!r}\n".encode())
    return digest.hexdigest()


def hold_out(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split into what stage 1 trains on and the scoring set, disjoint by content (reading A10).

    Examples with the same texts go to the same side, so that no text is both trained on and scored.

    Raises:
        DataError: a side would be empty.

    """
    by_content: dict[str, list[int]] = {}
    for index, content in enumerate(rows["content"]):
        by_content.setdefault(content, []).append(index)
    contents = sorted(by_content)
    random.Random(f"{seed}/scoring set").shuffle(contents)
    wanted, held = round(fraction * len(rows)), list[int]()
    for content in contents:
        if len(held) >= wanted:
            break
        held += by_content[content]
    kept = sorted(set(range(len(rows))) - set(held))
    if not held or not kept:
        raise DataError(
            f"a scoring fraction of {fraction} leaves {len(kept)} examples to train on and {len(held)} to score; change it"
        )
    train, scoring = rows.select(kept), rows.select(sorted(held))
    if common := set(train["content"]) & set(scoring["content"]):
        raise DataError(f"scoring set and training data share {len(common)} texts; they must be disjoint")
    return train, scoring


def tokenize(rows: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Model inputs, `labels` and `length` (tokens after cutting); not padded: batches are."""
    columns = [name for name in ("text_1", "text_2") if name in rows.column_names]

    def encode(batch: Mapping[str, list[Any]]) -> dict[str, Any]:
        encoded = dict(tokenizer(*(batch[name] for name in columns), truncation=True, max_length=max_length))
        return encoded | {"length": [len(ids) for ids in encoded["input_ids"]]}

    return rows.map(encode, batched=True, remove_columns=[*columns, "content"], keep_in_memory=True)


def _load(section: DataSection, part: str) -> Dataset:
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        if section.name is not None:
            split = section.train_split if part == "train" else section.test_split
            return datasets.load_dataset(section.name, section.config, split=split)
        path = Path(str(section.train if part == "train" else section.test))
        if not path.is_file():
            raise DataError(f"data.{part}: {path}: no such file (looked in {Path.cwd()})")
        if path.stat().st_size == 0:
            raise DataError(f"data.{part}: {path} is empty; it needs a header and examples")
        if path.suffix not in _TABLES:
            raise DataError(f"data.{part}: {path} is of unknown kind {path.suffix!r}; allowed: {', '.join(_TABLES)}")
        builder, options = _TABLES[path.suffix]
        return datasets.load_dataset(builder, data_files=str(path), split="train", **options)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds, pandas' and arrow's among them
        cause = error.__cause__ or error
        raise DataError(f"data.{part}: cannot be read ({type(cause).__name__}: {str(cause).strip()[:300]})") from error


def _check_columns(part: str, rows: Dataset, section: DataSection) -> None:
    for key, column in [*(("text", name) for name in section.text), ("label", section.label)]:
        if column not in rows.column_names:
            raise DataError(f"data.{key}: {part} has no column {column!r}; it has {', '.join(rows.column_names)}")
    if len(rows) == 0:
        raise DataError(f"data.{part} has no examples; it needs at least one")


def _class_names(labels: Any, column: str) -> tuple[str, ...]:
    values = set(labels)
    if None in values or "" in values:
        raise DataError(
            f"data.label: training example {list(labels).index(None if None in values else '')} has no {column!r}"
        )
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        raise DataError(f"data.label: {column!r} holds fractions, which are not classes; use data.task=regression")
    if len(values) < 2:
        raise DataError(
            f"data.label: {column!r} has the single class {values.pop()!r}; a classifier needs at least two"
        )
    numeric = all(isinstance(value, (int, float)) for value in values)
    return tuple(_class_name(value) for value in sorted(values, key=(lambda v: v) if numeric else str))


def _class_name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _clean(part: str, rows: Dataset, section: DataSection, numbers: Mapping[str, int]) -> Dataset:
    columns = [rows[column] for column in section.text]
    for column, texts in zip(section.text, columns, strict=True):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"data.text: {part} example {row} has {text!r} in {column!r}; texts are allowed")
    labels = [_label(part, row, value, section, numbers) for row, value in enumerate(rows[section.label])]
    content = [hashlib.sha256(json.dumps(texts).encode()).hexdigest() for texts in zip(*columns, strict=True)]
    cleaned = {f"text_{number}": list(texts) for number, texts in enumerate(columns, 1)}
    return Dataset.from_dict({**cleaned, "labels": labels, "content": content})


def _label(part: str, row: int, value: Any, section: DataSection, numbers: Mapping[str, int]) -> int | float:
    if section.task == "regression":
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if number - number != 0:  # NaN or infinite
            raise DataError(
                f"data.label: {part} example {row} has {value!r} in {section.label!r}; regression needs numbers"
            )
        return number
    name = _class_name(value)
    if name not in numbers:
        known = ", ".join(list(numbers)[:20])
        raise DataError(
            f"data.label: {part} example {row} has label {value!r}, which no training example has; known: {known}"
        )
    return numbers[name]
