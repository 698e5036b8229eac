"""Examples from files or the hub, checked before anything expensive, split by content."""

import hashlib
import json
import math
import random
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from lorank.errors import DataError, LorankWarning, listed, one_line, shown
from lorank.tasks.files import Rows, read_rows
from lorank.tasks.labels import Classes, LabelColumn, nearest, regression_labels
from lorank.tasks.sample import DrawnRows, check_classes, sampled
from lorank.tasks.section import EVAL, SCORING, SFT_COLUMNS, DataSection
from lorank.tasks.sft_rows import OPTIONAL, SHAREGPT, sft_examples
from lorank.tasks.text_data import needed_columns, prompts_and_targets

_TEMPLATE = "chat template"
SCORING_SET, EVALUATION_SET = "scoring set", "evaluation set"


@dataclass(frozen=True)
class TaskData:
    """Checked examples, labels as numbers.

    Attributes:
        train: text columns `text_1` (and `text_2`), `labels`, and `content`, a hash of the texts; of tasks that write, `prompt`,
            `cue` (its end), `target` and `content`; of chat, completion and text, `example` (JSON) and `content`, and, once they
            are made (`with_tokens`), their tokens.
        test: the same, evaluated once at the end; of several parts the first; None where the recipe has none.
        label_names: name of each class in order; empty for regression and tasks that write.
        hashes: SHA-256 over the content of each part, for the record and for resuming; the first test part is `test`. A chat
            template of the recipe's own has one, too.
        more: further test parts, by name.
        drawn: which rows of the file or split are used, by part (`train`, `test`, names of further ones), where `data.sample`
            draws a share of them.
        eval: what the loss is measured on while training; None where nothing is. A share of the training rows is not in `train`.
        scoring: what ranks are scored on, where the recipe names rows for it.
        streams: whether rows are read while they are trained on; `train` is then `scoring`, to be looked at.
        stream: tokens of these rows (`with_tokens`).
        packing_ratio: rows that a stage trains on for each example, below 1 where examples are packed.

    """

    train: Dataset
    test: Dataset | None
    label_names: tuple[str, ...]
    hashes: Mapping[str, str]
    more: Mapping[str, Dataset] = field(default_factory=dict)
    drawn: Mapping[str, DrawnRows] = field(default_factory=dict)
    eval: Dataset | None = None
    packing_ratio: float = 1.0
    scoring: Dataset | None = None
    streams: bool = False
    stream: IterableDataset | None = None

    @property
    def parts(self) -> dict[str, Dataset]:
        """All parts by name; the first test part is `test`."""
        train = None if self.streams else self.train
        named = {"train": train, EVAL: self.eval, SCORING: self.scoring, "test": self.test}
        return {**{name: rows for name, rows in named.items() if rows is not None}, **self.more}

    def training_rows(self, examples: int) -> int:
        """Rows that a stage trains on where it is given so many examples; with packing, about."""
        return math.ceil(examples * self.packing_ratio - 1e-9)

    def needs_test(self, what: str) -> Dataset:
        """The test part.

        Raises:
            DataError: there is none; the message begins with what it is needed for.

        """
        if self.test is None:
            raise DataError(f"{what}, a test part is needed, and the recipe has none; give data.test, a file")
        return self.test


def load_task_data(section: DataSection) -> TaskData:
    """Load all parts and check them; of a share (`data.sample`), too, all rows are checked before it is drawn.

    Raises:
        DataError: missing file or column, a text or label that is missing, labels that do not fit the task or that
            the training data does not know, no examples, a single class; a share without rows.

    Warns:
        LorankWarning: the share leaves a class without a training example.

    """
    raw, wrong = dict[str, Rows](), list[str]()
    first, *others = section.test_parts or (None,)
    read = {} if section.stream else {"train": "train"}
    read |= {EVAL: EVAL} if isinstance(section.eval, str) else {}
    read |= {SCORING: SCORING} if section.scoring is not None else {}
    read |= {"test": first} if first is not None else {}
    for part, named in (read | {name: name for name in others}).items():
        try:
            raw[part] = load_rows(section, named)
        except DataError as error:
            wrong.append(str(error))
    if wrong:
        raise DataError("\n".join(wrong))
    names: tuple[str, ...] = ()
    if section.writes:
        made = sft_examples if section.is_sft else prompts_and_targets
        parts = {part: made(part, rows, section) for part, rows in raw.items()}
    else:
        columns = {part: LabelColumn(part, section.label, rows) for part, rows in raw.items()}
        labels: dict[str, Any] = {}
        if section.task == "regression":
            labels = {part: regression_labels(column) for part, column in columns.items()}
        else:
            classes = Classes.of(columns["train"])
            names, labels = classes.names, {part: classes.numbers(column) for part, column in columns.items()}
        parts = {
            part: Dataset.from_dict({**labelled_texts(part, rows, section), "labels": labels[part]})
            for part, rows in raw.items()
        }
    whole, (parts, drawn) = parts, sampled(section.sample, parts)
    if section.task == "regression":
        if same := [part for part in ("test", *others) if len(set(parts[part]["labels"][:])) < 2]:
            raise DataError(f"data.{same[0]}: correlation needs at least two different labels; these are all the same")
    elif "train" in drawn and not section.writes and (said := check_classes(names, whole["train"], parts["train"])):
        warnings.warn(said, LorankWarning, stacklevel=2)
    if isinstance(section.eval, float):
        seed = 0 if section.sample is None else section.sample.seed
        parts["train"], parts[EVAL] = hold_out(parts["train"], section.eval, seed, EVALUATION_SET)
    hashes = {part: content_hash(rows) for part, rows in parts.items()}
    if section.chat_template is not None and Path(section.chat_template).is_file():  # it decides what is read, too
        hashes[_TEMPLATE] = hashlib.sha256(Path(section.chat_template).read_bytes()).hexdigest()
    return TaskData(
        parts[SCORING if section.stream else "train"],
        parts.get("test"),
        names,
        hashes,
        {name: parts[name] for name in others},
        drawn,
        eval=parts.get(EVAL),
        scoring=parts.get(SCORING),
        streams=section.stream,
    )


def content_hash(rows: Dataset) -> str:
    """SHA-256 over texts and labels, or prompts and targets, of all examples, in order."""
    if "example" in rows.column_names:  # whose content is all of it
        return hashlib.sha256("\n".join(rows["content"][:]).encode()).hexdigest()
    digest = hashlib.sha256()
    answers = rows["labels" if "labels" in rows.column_names else "target"]
    for content, label in zip(rows["content"][:], answers[:], strict=True):
        digest.update(f"{content}\t{label!r}\n".encode())
    return digest.hexdigest()


def hold_out(rows: Dataset, fraction: float, seed: int, what: str = SCORING_SET) -> tuple[Dataset, Dataset]:
    """Split into what is trained on and what is held out, the scoring set (reading A10) or another, disjoint by content.

    Examples with the same texts go to the same side, so that no text is both trained on and scored.

    Args:
        rows: of `load_task_data`.
        fraction: of the rows that is held out.
        seed: of the draw.
        what: is held out; another one is another draw.

    Raises:
        DataError: a side would be empty.

    """
    by_content: dict[str, list[int]] = {}
    for index, content in enumerate(rows["content"][:]):
        by_content.setdefault(content, []).append(index)
    contents = sorted(by_content)
    random.Random(f"{seed}/{what}").shuffle(contents)
    wanted, held = round(fraction * len(rows)), list[int]()
    for content in contents[:-1]:  # the last is left to train on
        if len(held) >= wanted:
            break
        held += by_content[content]
    kept = sorted(set(range(len(rows))) - set(held))
    if not held or not kept:
        raise DataError(
            f"{what} of {fraction} of the rows: it leaves {len(kept)} examples to train on and {len(held)} in it; change it"
        )
    train, scoring = rows.select(kept), rows.select(sorted(held))
    if common := set(train["content"][:]) & set(scoring["content"][:]):
        raise DataError(f"{what} and training data share {len(common)} texts; they must be disjoint")
    return train, scoring


def load_rows(section: DataSection, part: str) -> Rows:
    """The rows of a part as they stand in the file or on the hub, with the columns that the task needs.

    Raises:
        DataError: a file that cannot be read, a missing column, no examples.

    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    needed = _needed(section)
    wanted = (*needed, *((SHAREGPT, *OPTIONAL) if section.is_sft else ()))
    rows = _from_hub(section, part, wanted) if section.name is not None else _from_file(section, part, wanted)
    if section.task == "chat" and SHAREGPT in rows.columns:
        needed = {SHAREGPT: "task"}
    if len(rows) == 0 and not rows.names:
        raise DataError(f"data.{part} has no examples; it needs at least one")
    missing = [
        f"data.{key}: {part} has no column {column!r}; it has {listed(rows.names)}{nearest(column, rows.names)}"
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
    if section.is_sft:
        return dict.fromkeys(SFT_COLUMNS[section.task], "task")
    if section.writes and section.task != "summarization":
        return dict.fromkeys(needed_columns(section), "task")
    return {**dict.fromkeys(section.text, "text"), section.label: "label"}


def _from_file(section: DataSection, part: str, needed: Iterable[str]) -> Rows:
    try:
        files = {"train": section.train, EVAL: section.eval, SCORING: section.scoring, **section.test_parts}
        return read_rows(Path(str(files[part])), needed)
    except DataError as error:
        raise DataError(f"data.{part}: {error}") from error.__cause__


def _from_hub(section: DataSection, part: str, needed: Iterable[str]) -> Rows:
    """Rows with the types that `datasets` gives them. A folder of this machine is read anew: its cache goes by time stamps."""
    splits = {"train": section.train_split, EVAL: section.eval, SCORING: section.scoring, **section.test_parts}
    split = splits[part]
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


def labelled_texts(part: str, rows: Rows, section: DataSection) -> dict[str, Sequence[str]]:
    """Columns `text_1` (and `text_2`), and `content`, of a task with labels.

    Raises:
        DataError: a text that is none.

    """
    columns = [rows.columns[column] for column in section.text]
    for column, texts in zip(section.text, columns, strict=True):
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise DataError(
                    f"data.text: {part} example {row} has {shown(text)} in {column!r}; texts are allowed{rows.place(row)}"
                )
    content = [hashlib.sha256(json.dumps(texts).encode()).hexdigest() for texts in zip(*columns, strict=True)]
    return {**{f"text_{number}": texts for number, texts in enumerate(columns, 1)}, "content": content}
