"""The first rows of data that nothing is known of: which columns there are, and what is in them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorank.errors import DataError, listed, one_line
from lorank.tasks.files import Rows, read_rows

MOST = 200  # rows that are looked at


@dataclass(frozen=True)
class Source:
    """Data, and how a recipe names them.

    Attributes:
        rows: the first ones, all columns.
        count: of all rows; None where it is not known.
        keys: of the recipe's `data` -> value and why.
        has_test: whether the keys name a test part.
        has_validation: whether they could name a split to evaluate on while training.

    """

    rows: Rows
    count: int | None
    keys: Mapping[str, tuple[Any, str]]
    has_test: bool
    has_validation: bool = False


def read_source(data: str, test: Path | None, config: str | None) -> Source:
    """Read the first rows of a file, or of a data set of the hub.

    Args:
        data: a file (csv, tsv, json, jsonl, parquet), or the name of a hub data set.
        test: a file to evaluate on, beside a file.
        config: configuration of a hub data set.

    Raises:
        DataError: they cannot be read, or a configuration is missing.

    """
    path = Path(data)
    if path.is_file() or path.suffix.lower() in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
        if config is not None:
            raise DataError(f"--config is of a hub data set, and {data} is a file; leave it out")
        return _of_file(path, test)
    if test is not None:
        raise DataError(f"--test is a file beside a file, and {data} is no file; its splits are used")
    return _of_hub(data, config)


def _of_file(path: Path, test: Path | None) -> Source:
    whole = read_rows(path, read_rows(path, ()).names)
    if len(whole) == 0:
        raise DataError(f"{path} has no examples; it needs at least one")
    keys: dict[str, tuple[Any, str]] = {"train": (str(path), f"{len(whole):,} rows")}
    if test is not None:
        missing = [name for name in whole.names if name not in read_rows(test, ()).names]
        if missing:
            raise DataError(
                f"--test {test} has no column {missing[0]!r}, as {path} has; give a file of the same columns"
            )
        same = test.samefile(path)
        why = "the training file itself, so its numbers say nothing of new rows; give another file"
        keys["test"] = (str(test), why if same else "evaluated once at the end, never used for scoring or stopping")
    return Source(_first(whole), len(whole), keys, test is not None)


def _first(rows: Rows) -> Rows:
    columns = {name: values[:MOST] for name, values in rows.columns.items()}
    return Rows(rows.names, columns, min(len(rows), MOST), rows.lines[:MOST], rows.file, rows.classes)


def _of_hub(name: str, config: str | None) -> Source:
    import datasets

    try:
        configs = datasets.get_dataset_config_names(name)
        if config is None and len(configs) > 1:
            raise DataError(f"{name} has several configurations: {listed(configs)}; give one as --config")
        splits = datasets.get_dataset_split_names(name, config)
        train = "train" if "train" in splits else splits[0]
        stream = datasets.load_dataset(name, config, split=train, streaming=True)
        rows = list(stream.take(MOST))
        features = stream.features or {}
        known = (stream.info.splits or {}).get(train)
    except DataError:
        raise
    except Exception as error:  # datasets raises many kinds, arrow's and the hub's among them
        raise DataError(
            f"{name}: no such file, and no data set of the hub that can be read ({type(error).__name__}: {one_line(error)})"
        ) from None
    if not rows:
        raise DataError(f"{name}: split {train} has no examples; it needs at least one")
    classes = {key: tuple(kind.names) for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    count = getattr(known, "num_examples", None) or None
    keys: dict[str, tuple[Any, str]] = {"name": (name, f"{count:,} rows" if count else "a data set of the hub")}
    if config is not None:
        keys["config"] = (config, "its configuration")
    keys["train_split"] = (train, f"splits: {', '.join(splits)}")
    test = next((split for split in ("validation", "test", "dev") if split in splits and split != train), None)
    if test is not None:
        keys["test_split"] = (test, "evaluated once at the end, never used for scoring or stopping")
    else:
        keys["train_split"] = (f"{train}[:90%]", "there is no other split, so the last tenth is kept to test on")
        keys["test_split"] = (f"{train}[90%:]", "the last rows; shuffle the data if they are in an order")
    return Source(Rows(tuple(rows[0]), columns, len(rows), classes=classes), count, keys, True, "validation" in splits)
