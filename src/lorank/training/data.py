"""Examples from files or the hub, checked before anything expensive, split by content."""

import csv
import hashlib
import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets import Dataset

from lorank.errors import DataError
from lorank.training.recipe_sections import DataSection
from lorank.training.text_data import needed_columns, prompts_and_targets

# Delimiter, and whether quotes mean anything: in GLUE-style tsv files they are part of the text.
_TABLES: dict[str, tuple[str, Literal[0, 3]]] = {".csv": (",", csv.QUOTE_MINIMAL), ".tsv": ("\t", csv.QUOTE_NONE)}
_BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True)
class TaskData:
    """Checked examples, labels as numbers.

    Attributes:
        train: text columns `text_1` (and `text_2`), `labels`, and `content`, a hash of the texts; of tasks that write, `prompt`,
            `cue` (its end), `target` and `content`.
        test: the same, evaluated once at the end.
        label_names: name of each class in order; empty for regression and tasks that write.
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
    raw = {part: load_rows(section, part) for part in ("train", "test")}
    if section.writes:
        parts = {part: prompts_and_targets(part, rows, section) for part, rows in raw.items()}
        return TaskData(parts["train"], parts["test"], (), {part: content_hash(rows) for part, rows in parts.items()})
    labels = _Labels.of(raw["train"], section)
    parts = {part: _clean(part, rows, section, labels) for part, rows in raw.items()}
    if section.task == "regression" and len(set(parts["test"]["labels"])) < 2:
        raise DataError("data.test: correlation needs at least two different labels; these are all the same")
    return TaskData(
        parts["train"], parts["test"], labels.names, {part: content_hash(rows) for part, rows in parts.items()}
    )


def content_hash(rows: Dataset) -> str:
    """SHA-256 over texts and labels, or prompts and targets, of all examples, in order."""
    digest = hashlib.sha256()
    answers = rows["labels" if "labels" in rows.column_names else "target"]
    for content, label in zip(rows["content"], answers, strict=True):
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
    for content in contents[:-1]:  # the last is left to train on
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


def load_rows(section: DataSection, part: str) -> Dataset:
    """The rows of a part as they stand in the file or on the hub, with the columns that the task needs.

    Raises:
        DataError: a file that cannot be read, a missing column, no examples.

    """
    rows = _load(section, part)
    _check_columns(part, rows, section)
    return rows


def _load(section: DataSection, part: str) -> Dataset:
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    path = Path(str(section.train if part == "train" else section.test))
    suffix = path.suffix.lower()
    try:
        if section.name is not None:
            split = section.train_split if part == "train" else section.test_split
            return datasets.load_dataset(section.name, section.config, split=split)
        if not path.is_file():
            raise DataError(f"data.{part}: {path}: no such file (looked in {Path.cwd()})")
        if path.stat().st_size == 0:
            raise DataError(f"data.{part}: {path} is empty; it needs a header and examples")
        if suffix in _TABLES:
            return _read_table(path, part, *_TABLES[suffix])
        if suffix in _BUILDERS:
            return datasets.load_dataset(_BUILDERS[suffix], data_files=str(path), split="train")
        raise DataError(
            f"data.{part}: {path} is of unknown kind {suffix!r}; allowed: {', '.join([*_TABLES, *_BUILDERS])}"
        )
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds, arrow's and the hub's among them
        cause = error.__cause__ or error
        raise DataError(f"data.{part}: cannot be read ({type(cause).__name__}: {str(cause).strip()[:300]})") from error


def _read_table(path: Path, part: str, delimiter: str, quoting: Literal[0, 3]) -> Dataset:
    """Every cell as the text that it is: guessing types would read `null` or `01` differently from file to file."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, quoting=quoting, strict=True)
        header = next(reader)
        rows = []
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
            elif row:  # an empty line is no example
                raise DataError(
                    f"data.{part}: {path}, line {reader.line_num} has {len(row)} fields where the header has {len(header)}"
                )
    if len(set(header)) < len(header):
        raise DataError(f"data.{part}: {path} names a column twice: {', '.join(header)}")
    return Dataset.from_dict({name: [row[k] for row in rows] for k, name in enumerate(header)})


def _check_columns(part: str, rows: Dataset, section: DataSection) -> None:
    needed = [*(("text", name) for name in section.text), ("label", section.label)]
    if section.writes and section.task != "summarization":
        needed = [("task", column) for column in needed_columns(section)]
    for key, column in needed:
        if column not in rows.column_names:
            raise DataError(f"data.{key}: {part} has no column {column!r}; it has {', '.join(rows.column_names)}")
    if len(rows) == 0:
        raise DataError(f"data.{part} has no examples; it needs at least one")


@dataclass(frozen=True)
class _Labels:
    """Labels as numbers. Classes are what the training data has, in order: whole numbers by size, else by name."""

    column: str
    regression: bool
    names: tuple[str, ...]
    numbers: Mapping[str, int]
    whole: bool

    @classmethod
    def of(cls, rows: Dataset, section: DataSection) -> "_Labels":
        column = section.label
        if section.task == "regression":
            return cls(column, True, (), {}, False)
        feature = rows.features[column]
        if isinstance(
            feature, datasets.ClassLabel
        ):  # a hub data set: labels are numbers already, with names beside them
            return cls(column, False, tuple(feature.names), {str(k): k for k in range(len(feature.names))}, True)
        values = list(rows[column])
        for row, value in enumerate(values):
            if not isinstance(value, (str, int, float)) or value == "":
                raise DataError(
                    f"data.label: train example {row} has {value!r} in {column!r}; a text or a number is allowed"
                )
        parsed = [_number(value) for value in values]
        whole = all(number.is_integer() for number in parsed)
        if not whole and all(number == number for number in parsed):
            raise DataError(f"data.label: {column!r} holds fractions, which are not classes; use data.task=regression")
        found = {str(int(n)) for n in parsed} if whole else {str(value) for value in values}
        if len(found) < 2:
            raise DataError(
                f"data.label: {column!r} has the single class {found.pop()!r}; a classifier needs at least two"
            )
        names = sorted(found, key=int) if whole else sorted(found)
        return cls(column, False, tuple(names), {name: k for k, name in enumerate(names)}, whole)

    def number(self, part: str, row: int, value: Any) -> int | float:
        parsed = _number(value)
        if self.regression:
            if not math.isfinite(parsed):
                raise DataError(
                    f"data.label: {part} example {row} has {value!r} in {self.column!r}; regression needs numbers"
                )
            return parsed
        name = str(int(parsed)) if self.whole and parsed.is_integer() else str(value)
        if name not in self.numbers:
            known = ", ".join(self.names[:20])
            raise DataError(
                f"data.label: {part} example {row} has label {value!r}, which no training example has; known: {known}"
            )
        return self.numbers[name]


def _number(value: Any) -> float:
    """The value as a number; NaN if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _clean(part: str, rows: Dataset, section: DataSection, labels: _Labels) -> Dataset:
    columns = [list(rows[column]) for column in section.text]
    for column, texts in zip(section.text, columns, strict=True):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(f"data.text: {part} example {row} has {text!r} in {column!r}; texts are allowed")
    numbers = [labels.number(part, row, value) for row, value in enumerate(rows[section.label])]
    content = [hashlib.sha256(json.dumps(texts).encode()).hexdigest() for texts in zip(*columns, strict=True)]
    cleaned = {f"text_{number}": texts for number, texts in enumerate(columns, 1)}
    return Dataset.from_dict({**cleaned, "labels": numbers, "content": content})
