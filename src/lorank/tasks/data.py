"""Examples from files or the hub, checked before anything expensive, split by content."""

import hashlib
import json
import random
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets import Dataset

from lorank.errors import DataError, LorankWarning, one_line
from lorank.tasks.files import Rows, read_rows
from lorank.tasks.labels import Classes, LabelColumn, nearest, regression_labels
from lorank.tasks.sample import DrawnRows, check_classes, sampled
from lorank.tasks.section import DataSection
from lorank.tasks.text_data import needed_columns, prompts_and_targets


@dataclass(frozen=True)
class TaskData:
    """Checked examples, labels as numbers.

    Attributes:
        train: text columns `text_1` (and `text_2`), `labels`, and `content`, a hash of the texts; of tasks that write, `prompt`,
            `cue` (its end), `target` and `content`.
        test: the same, evaluated once at the end; of several parts the first.
        label_names: name of each class in order; empty for regression and tasks that write.
        hashes: SHA-256 over the content of each part, for the record and for resuming; the first test part is `test`.
        more: further test parts, by name.
        drawn: which rows of the file or split are used, by part (`train`, `test`, names of further ones), where `data.sample`
            draws a share of them.

    """

    train: Dataset
    test: Dataset
    label_names: tuple[str, ...]
    hashes: Mapping[str, str]
    more: Mapping[str, Dataset] = field(default_factory=dict)
    drawn: Mapping[str, DrawnRows] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Dataset]:
        """All parts by name; the first test part is `test`."""
        return {"train": self.train, "test": self.test, **self.more}


def load_task_data(section: DataSection) -> TaskData:
    """Load all parts and check them; of a share (`data.sample`), too, all rows are checked before it is drawn.

    Raises:
        DataError: missing file or column, a text or label that is missing, labels that do not fit the task or that
            the training data does not know, no examples, a single class; a share without rows.

    Warns:
        LorankWarning: the share leaves a class without a training example.

    """
    raw, wrong = dict[str, Rows](), list[str]()
    first, *others = section.test_parts
    for part in ("train", first, *others):
        try:
            raw["test" if part == first else part] = load_rows(section, part)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(wrong))
    names: tuple[str, ...] = ()
    if section.writes:
        parts = {part: prompts_and_targets(part, rows, section) for part, rows in raw.items()}
    else:
        columns = {part: LabelColumn(part, section.label, rows) for part, rows in raw.items()}
        labels: dict[str, Any] = {}
        if section.task == "regression":
            labels = {part: regression_labels(column) for part, column in columns.items()}
        else:
            classes = Classes.of(columns["train"])
            names, labels = classes.names, {part: classes.numbers(column) for part, column in columns.items()}
        parts = {
            part: Dataset.from_dict({**_texts(part, rows, section), "labels": labels[part]})
            for part, rows in raw.items()
        }
    whole, (parts, drawn) = parts, sampled(section.sample, parts)
    if section.task == "regression":
        if same := [part for part in ("test", *others) if len(set(parts[part]["labels"][:])) < 2]:
            raise DataError(f"data.{same[0]}: correlation needs at least two different labels; these are all the same")
    elif "train" in drawn and not section.writes and (said := check_classes(names, whole["train"], parts["train"])):
        warnings.warn(said, LorankWarning, stacklevel=2)
    hashes = {part: content_hash(rows) for part, rows in parts.items()}
    return TaskData(parts["train"], parts["test"], names, hashes, {name: parts[name] for name in others}, drawn)


def content_hash(rows: Dataset) -> str:
    """SHA-256 over texts and labels, or prompts and targets, of all examples, in order."""
    digest = hashlib.sha256()
    answers = rows["labels" if "labels" in rows.column_names else "target"]
    for content, label in zip(rows["content"][:], answers[:], strict=True):
        digest.update(f"{content}\t{label!r}\n".encode())
    return digest.hexdigest()


def hold_out(rows: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Split into what triplets train on and the scoring set, disjoint by content (reading A10).

    Examples with the same texts go to the same side, so that no text is both trained on and scored.

    Raises:
        DataError: a side would be empty.

    """
    by_content: dict[str, list[int]] = {}
    for index, content in enumerate(rows["content"][:]):
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
    if common := set(train["content"][:]) & set(scoring["content"][:]):
        raise DataError(f"scoring set and training data share {len(common)} texts; they must be disjoint")
    return train, scoring


def load_rows(section: DataSection, part: str) -> Rows:
    """The rows of a part as they stand in the file or on the hub, with the columns that the task needs.

    Raises:
        DataError: a file that cannot be read, a missing column, no examples.

    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    needed = _needed(section)
    rows = _from_hub(section, part, needed) if section.name is not None else _from_file(section, part, needed)
    if len(rows) == 0 and not rows.names:
        raise DataError(f"data.{part} has no examples; it needs at least one")
    missing = [
        f"data.{key}: {part} has no column {column!r}; it has {', '.join(rows.names)}{nearest(column, rows.names)}"
        for column, key in needed.items()
        if column not in rows.columns
    ]
    if missing:
        raise DataError("\n".join(missing))
    if len(rows) == 0:
        raise DataError(f"data.{part} has no examples; it needs at least one")
    return rows


def _needed(section: DataSection) -> dict[str, str]:
    """Columns that the task needs, each with the key of the section that says so."""
    if section.writes and section.task != "summarization":
        return dict.fromkeys(needed_columns(section), "task")
    return {**dict.fromkeys(section.text, "text"), section.label: "label"}


def _from_file(section: DataSection, part: str, needed: Iterable[str]) -> Rows:
    try:
        return read_rows(Path(str(section.train if part == "train" else section.test_parts[part])), needed)
    except DataError as error:
        raise DataError(f"data.{part}: {error}") from error.__cause__


def _from_hub(section: DataSection, part: str, needed: Iterable[str]) -> Rows:
    """Rows with the types that `datasets` gives them. A folder of this machine is read anew: its cache goes by time stamps."""
    split = section.train_split if part == "train" else section.test_parts[part]
    try:
        if Path(str(section.name)).exists():
            with TemporaryDirectory() as cache:
                loaded = datasets.load_dataset(
                    section.name, section.config, split=split, cache_dir=cache, keep_in_memory=True
                )
        else:
            loaded = datasets.load_dataset(section.name, section.config, split=split)
        columns = {name: loaded[name][:] for name in needed if name in loaded.column_names}
    except Exception as error:  # datasets raises many kinds, arrow's and the hub's among them
        cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
        raise DataError(f"data.{part}: cannot be read ({type(cause).__name__}: {one_line(cause)})") from error
    classes = {
        name: tuple(kind.names) for name, kind in loaded.features.items() if isinstance(kind, datasets.ClassLabel)
    }
    return Rows(tuple(loaded.column_names), columns, len(loaded), classes=classes)


def _texts(part: str, rows: Rows, section: DataSection) -> dict[str, Sequence[str]]:
    """Columns `text_1` (and `text_2`), and `content`."""
    columns = [rows.columns[column] for column in section.text]
    for column, texts in zip(section.text, columns, strict=True):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"data.text: {part} example {row} has {text!r:.80} in {column!r}; texts are allowed{rows.place(row)}"
                )
    content = [hashlib.sha256(json.dumps(texts).encode()).hexdigest() for texts in zip(*columns, strict=True)]
    return {**{f"text_{number}": texts for number, texts in enumerate(columns, 1)}, "content": content}
